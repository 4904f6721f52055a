"""Evaluations by gloo processes: python sharded_runs.py NAME RANK WORLD FOLDER PACE, once for each
rank; NAME: all, attacks or ensemble; PACE: seconds that a forward pass waits."""

import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset, DistributedSampler, TensorDataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import judged_models  # noqa: E402
from toy_models import mixed_problem, threat_of  # noqa: E402

import fastadv  # noqa: E402
from fastadv.evaluation.state import State  # noqa: E402

N = 61  # the shares differ in length, and neither is whole blocks


def ensemble():
    threat = threat_of("linf")
    attacks = [
        fastadv.apgd_ce(threat, steps=1),
        fastadv.apgd_t(threat, steps=3, n_target_classes=2),
        fastadv.square(threat, queries=8),
    ]
    return fastadv.autoattack(threat, version="custom", attacks=attacks)


ATTACKS = {
    "pgd": lambda: fastadv.pgd(threat_of("linf"), steps=3, restarts=2, seed=3),
    "pgd L2": lambda: fastadv.pgd(threat_of("l2"), steps=3, seed=3),
    "ensemble": ensemble,
}


JUDGED = tuple(judged_models.CASES)  # by objectives, and with more than x and y


class Pairs(Dataset):
    """Counts how often it is read."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.x, self.y, self.reads = x, y, 0

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        self.reads += 1
        return self.x[index], int(self.y[index])


class FailingOn(torch.nn.Module):
    """Raises where `fails`."""

    def __init__(self, model: torch.nn.Module, fails: bool) -> None:
        super().__init__()
        self.model, self.fails = model, fails

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.fails:
            raise RuntimeError("no memory here")
        return self.model(x)


class Slow(torch.nn.Module):
    def __init__(self, model: torch.nn.Module, pause: float) -> None:
        super().__init__()
        self.model, self.pause = model, pause

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(self.pause)
        return self.model(x)


class Stopped(BaseException):
    pass


def said(call) -> str:
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def report_of(name: str, source=None, model=None, **more) -> str:
    if name in JUDGED:
        case = judged_models.CASES[name](N)
        own, data, attack = case.model, case.data, case.attack
    else:
        p = mixed_problem(N, curvature=1.0)
        own, data, attack = p.model, (p.x, p.y), ATTACKS[name]()
    source = source or data
    return fastadv.evaluate(model or own, source, attack, batch_size=2, **more).to_json()


def attacks(rank: int, world: int, folder: Path, pace: float) -> dict[str, Any]:
    plain = fastadv.Execution(batching="plain")
    found: dict[str, Any] = {name: report_of(name) for name in ATTACKS}
    for name in JUDGED:
        data = TensorDataset(*judged_models.CASES[name](N).data)
        found[name] = report_of(name, DataLoader(data, batch_size=5))
    found["plain batching"] = report_of("pgd", execution=plain)
    return found


def ensemble_alone(rank: int, world: int, folder: Path, pace: float) -> dict[str, Any]:
    """Blocks of 8, passes that do not depend on which samples share a batch, and a checkpoint."""
    p = mixed_problem(N, curvature=1.0)
    found: dict[str, Any] = {}

    def evaluate() -> None:
        found["ensemble"] = fastadv.evaluate(
            Slow(p.model, pace),
            (p.x, p.y),
            ensemble(),
            batch_size=1,
            execution=fastadv.Execution(batching="plain"),
            checkpoint=folder / "run.pt",
        ).to_json()

    found["error"] = said(evaluate)
    return found


def everything(rank: int, world: int, folder: Path, pace: float) -> dict[str, Any]:
    p = mixed_problem(N, curvature=1.0)
    data, report = TensorDataset(p.x, p.y), report_of
    found = attacks(rank, world, folder, pace)
    found["loader"] = report("ensemble", DataLoader(data, batch_size=5))
    pairs = Pairs(p.x, p.y)
    found["dataset"], found["reads"] = report("ensemble", pairs), pairs.reads
    order = torch.Generator().manual_seed(5)
    found["same order"] = report("pgd", DataLoader(data, shuffle=True, generator=order))
    found["few samples"] = report("pgd", (p.x[3:4], p.y[3:4]))

    found["saved"] = report("ensemble", checkpoint=folder / "whole.pt")
    found["read again"] = report("ensemble", checkpoint=folder / "whole.pt")
    found["of one"] = report("ensemble", checkpoint=folder / "one.pt")
    pairs = Pairs(p.x, p.y)
    found["of one, dataset"] = report("ensemble", pairs, checkpoint=folder / "one, dataset.pt")
    found["reads of one"] = pairs.reads
    found["resumed"] = _interrupted(report, rank, folder / "killed.pt")
    _stopped(report, rank, folder / "left.pt")
    found["wrapped"] = report("pgd", model=torch.nn.parallel.DistributedDataParallel(p.model))

    sampler = DistributedSampler(data, world, rank)
    found["sampler"] = said(lambda: report("pgd", DataLoader(data, sampler=sampler)))
    found["shuffle"] = said(lambda: report("pgd", DataLoader(data, shuffle=True)))
    other = torch.Generator().manual_seed(rank)
    found["other order"] = said(
        lambda: report("pgd", DataLoader(data, shuffle=True, generator=other))
    )
    fewer = TensorDataset(p.x[: N - 4 * rank], p.y[: N - 4 * rank])
    found["fewer"] = said(lambda: report("pgd", DataLoader(fewer, batch_size=5)))
    found["fewer, tensors"] = said(lambda: report("pgd", fewer.tensors))
    found["other data"] = said(
        lambda: report("ensemble", (p.x.flip(0), p.y), checkpoint=folder / "left.pt")
    )
    failing = FailingOn(p.model, fails=rank == 1)
    found["failing"] = said(lambda: report("pgd", model=failing))
    mine = mixed_problem(N, curvature=1.0, seed=rank).model
    found["other model"] = said(lambda: report("pgd", model=mine))
    weaker = fastadv.bim(threat_of("linf"), steps=1 + rank)
    found["other attack"] = said(lambda: fastadv.evaluate(p.model, (p.x, p.y), weaker))
    damaged = folder / "damaged.pt"
    if rank == 1:
        damaged.with_name("damaged.rank1of2.pt").write_bytes(b"cut off")
    dist.barrier()
    found["damaged"] = said(lambda: report("pgd", checkpoint=damaged))
    found["empty"] = said(lambda: report("pgd", (p.x[:0], p.y[:0])))
    found["gone"] = said(lambda: _left_by_the_second(report, rank, folder / "gone.pt"))
    found["after it"] = report("pgd", checkpoint=folder / "gone.pt")
    return found


def _stopped(report, rank: int, path: Path, *, at: int = 2) -> None:
    """Each process stops right after another of its saves."""
    original, count = State.save, 0

    def save(self, where) -> None:
        nonlocal count
        original(self, where)
        count += 1
        if count == at + 3 * rank:
            raise Stopped

    State.save = save  # type: ignore[method-assign]
    try:
        report("ensemble", checkpoint=path)
    except Stopped:
        pass
    finally:
        State.save = original  # type: ignore[method-assign]


def _interrupted(report, rank: int, path: Path) -> str:
    """Stopped inside a block, then all go on."""
    _stopped(report, rank, path)
    return report("ensemble", checkpoint=path)


def _left_by_the_second(report, rank: int, path: Path) -> None:
    """Ctrl-C on one process, which lives on."""

    def press(self, where) -> None:
        raise KeyboardInterrupt

    if rank == 0:
        report("pgd", checkpoint=path)
        return
    original, State.save = State.save, press  # type: ignore[method-assign]
    try:
        report("pgd", checkpoint=path)
    except KeyboardInterrupt as interrupt:
        raise RuntimeError(" ".join(interrupt.__notes__)) from interrupt
    finally:
        State.save = original  # type: ignore[method-assign]


RUNS = {"all": everything, "attacks": attacks, "ensemble": ensemble_alone}


def main(name: str, rank: str, world: str, folder: str, pace: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    where = Path(folder)
    dist.init_process_group(
        "gloo", init_method=f"file://{where / 'meeting'}", rank=int(rank), world_size=int(world)
    )
    found = RUNS[name](int(rank), int(world), where, float(pace))
    torch.save(found, where / f"rank-{rank}.pt")
    if not found.get("error"):  # else one is gone
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
