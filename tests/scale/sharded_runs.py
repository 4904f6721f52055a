"""Evaluations by two gloo processes: python sharded_runs.py RANK FOLDER, once for each rank."""

import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset, DistributedSampler, TensorDataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from toy_models import mixed_problem, threat_of  # noqa: E402

import fastadv  # noqa: E402
from fastadv.evaluation.state import State  # noqa: E402

WORLD = 2
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


class Stopped(BaseException):
    pass


def said(call) -> str:
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def runs(rank: int, folder: Path) -> dict[str, Any]:
    p = mixed_problem(N, curvature=1.0)
    data = TensorDataset(p.x, p.y)

    def report(name: str, source=(p.x, p.y), model=p.model, **more) -> str:
        attack = ATTACKS[name]()
        return fastadv.evaluate(model, source, attack, batch_size=2, **more).to_json()

    plain = fastadv.Execution(batching="plain")
    found: dict[str, Any] = {name: report(name) for name in ATTACKS}
    found["plain batching"] = report("pgd", execution=plain)
    found["loader"] = report("ensemble", DataLoader(data, batch_size=5))
    pairs = Pairs(p.x, p.y)
    found["dataset"], found["reads"] = report("ensemble", pairs), pairs.reads
    order = torch.Generator().manual_seed(5)
    found["same order"] = report("pgd", DataLoader(data, shuffle=True, generator=order))
    found["few samples"] = report("pgd", (p.x[3:4], p.y[3:4]))

    found["saved"] = report("ensemble", checkpoint=folder / "whole.pt")
    found["read again"] = report("ensemble", checkpoint=folder / "whole.pt")
    found["resumed"] = _interrupted(report, rank, folder / "killed.pt")
    found["wrapped"] = report("pgd", model=torch.nn.parallel.DistributedDataParallel(p.model))

    found["of one"] = said(lambda: report("ensemble", checkpoint=folder / "one.pt"))
    sampler = DistributedSampler(data, WORLD, rank)
    found["sampler"] = said(lambda: report("pgd", DataLoader(data, sampler=sampler)))
    found["shuffle"] = said(lambda: report("pgd", DataLoader(data, shuffle=True)))
    other = torch.Generator().manual_seed(rank)
    found["other order"] = said(
        lambda: report("pgd", DataLoader(data, shuffle=True, generator=other))
    )
    fewer = DataLoader(TensorDataset(p.x[: N - 4 * rank], p.y[: N - 4 * rank]), batch_size=5)
    found["fewer"] = said(lambda: report("pgd", fewer))
    failing = FailingOn(p.model, fails=rank == 1)
    found["failing"] = said(lambda: report("pgd", model=failing))
    mine = mixed_problem(N, curvature=1.0, seed=rank).model
    found["other model"] = said(lambda: report("pgd", model=mine))
    weaker = fastadv.bim(threat_of("linf"), steps=1 + rank)
    found["other attack"] = said(lambda: fastadv.evaluate(p.model, (p.x, p.y), weaker))
    found["empty"] = said(lambda: report("pgd", (p.x[:0], p.y[:0])))
    return found


def _interrupted(report, rank: int, path: Path) -> str:
    """This process stopped inside a block, each at another moment, then all go on."""
    original, count = State.save, 0

    def save(self, where) -> None:
        nonlocal count
        original(self, where)
        count += 1
        if count == 2 + 3 * rank:
            raise Stopped

    State.save = save  # type: ignore[method-assign]
    try:
        report("ensemble", checkpoint=path)
    except Stopped:
        pass
    finally:
        State.save = original  # type: ignore[method-assign]
    return report("ensemble", checkpoint=path)


def main() -> None:
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=WORLD
    )
    torch.save(runs(rank, folder), folder / f"rank-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
