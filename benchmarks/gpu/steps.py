"""Section "steps": kernels, launches and synchronisations of an attack's step, by the profiler."""

import contextlib
import copy
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

import fastadv
from benchmarks.autoattack import parties as autoattack_parties
from benchmarks.autoattack.entrants import AUTHORS
from benchmarks.autoattack.runs import missed_and_beyond, verdict
from benchmarks.gpu import attack_providers as providers
from benchmarks.gpu import networks as gpu_networks
from benchmarks.gpu.session import Session
from benchmarks.harness import peers, schema
from benchmarks.harness.networks import Problem
from benchmarks.harness.peers import Settings
from fastadv.engine import plain

SUITE = "gpu_steps"
UNIT = "kernels"
_SHORTER, _LONGER = 10, 30
_REHEARSED = 2, 4  # steps of the two in a rehearsal: the profiler takes long over ops of a CPU
_TINY = 1e-6  # a radius at which nothing falls, so that every step is made
_TIMED = "nothing: kernels a step beside one forward and backward of the model, by the profiler"
_METRIC = "samples that the first provider broke and this one left, net, over n, 10 steps"

# steps and a radius to a call that attacks with them
Attack = Callable[[int, float], torch.Tensor]


@dataclass(frozen=True)
class Counted:
    """Of one run: device kernels, copies and fills; launches by the host, graphs counting one."""

    kernels: float
    copies: float
    launches: float

    def minus(self, other: "Counted") -> "Counted":
        return Counted(
            self.kernels - other.kernels, self.copies - other.copies, self.launches - other.launches
        )

    def over(self, steps: int) -> "Counted":
        return Counted(self.kernels / steps, self.copies / steps, self.launches / steps)


def main(session: Session) -> None:
    n = 4 if session.tiny else 128
    problem = gpu_networks.problem("preact_resnet18", n, session.device, tiny=session.tiny)
    problem.model.requires_grad_(False)  # the passes are then the same for all
    eps = gpu_networks.radius_for_half(problem)
    # counted as it runs in an attack: eagerly, kernel by kernel
    model = counted(_passes(problem), session.on_gpu)
    for case, build in (("PGD", _pgd), ("APGD-CE", _apgd)):
        robust: dict[str, str] = {}
        base = 0.0
        for name, make in build(session, problem).items():
            label = f"{case} step, {name}"
            if not session.may_begin(label):
                continue
            with session.guarded(label):
                attack = make()
                mask = _robust(problem, eps, attack(10, eps))
                found = per_step(attack, model, session.on_gpu)
                robust[name] = mask
                base = base or max(found.kernels, 0.01)
                row = _row(session, problem, case, name, found, base, robust)
                row.extra.update(_synchronisations(session, attack))
                print(f"  {label}: {found}, {row.extra}")
                session.add([row])
    if session.on_gpu and session.may_begin("strict"):
        with session.guarded("no synchronisation in the plain loop"):
            _run_strictly(problem)


def _passes(problem: Problem) -> Callable[[], torch.Tensor]:
    leaf = problem.x.clone().requires_grad_()

    def passes() -> torch.Tensor:
        logits = problem.model(leaf)
        return torch.autograd.grad(logits, leaf, torch.ones_like(logits))[0]

    return passes


def counted(run: Callable[[], object], on_gpu: bool) -> Counted:
    """What a warm run launches; on a CPU its ops, as a rehearsal."""
    run()
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the profiler's own
        with profile(activities=activities) as profiler:
            run()
            if on_gpu:
                torch.cuda.synchronize()
        events = profiler.events() or []
    where = DeviceType.CUDA if on_gpu else DeviceType.CPU
    kernels = copies = launches = 0
    for event in events:
        name = event.name
        if event.device_type == where and (on_gpu or name.startswith(("aten::", "fastadv::"))):
            is_copy = name.startswith(("Memcpy", "Memset"))
            copies += is_copy
            kernels += not is_copy
        launches += "LaunchKernel" in name or "GraphLaunch" in name
    return Counted(kernels, copies, launches)


def per_step(attack: Attack, model: Counted, on_gpu: bool) -> Counted:
    """(a longer run less a shorter one) / their steps, less the kernels of the model's passes."""
    lengths = (_SHORTER, _LONGER) if on_gpu else _REHEARSED
    runs = [counted(lambda k=k: attack(k, _TINY), on_gpu) for k in lengths]
    found = runs[1].minus(runs[0]).over(lengths[1] - lengths[0])
    return replace(
        found.minus(model), launches=found.launches
    )  # a graph's launch is the model's too


def _synchronisations(session: Session, attack: Attack) -> dict[str, float]:
    """A step's, by `set_sync_debug_mode`; of a CPU nothing."""
    if not session.on_gpu:
        return {}
    counts = []
    for steps in (_SHORTER, _LONGER):
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                attack(steps, _TINY)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        counts.append(sum("synchroniz" in str(warning.message) for warning in seen))
    a_step = (counts[1] - counts[0]) / (_LONGER - _SHORTER)
    return {"synchronisations": a_step, "synchronisations_a_call": counts[0]}


@contextlib.contextmanager
def _strict_loop() -> Iterator[None]:
    """Any synchronisation inside the plain loop raises, as does a loop that is not that one."""
    original = plain.run_chunk
    entered = []

    def strict(*args: Any, **kwargs: Any) -> Any:
        entered.append(1)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            return original(*args, **kwargs)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    with contextlib.ExitStack() as patches:
        for name, module in list(sys.modules.items()):
            if name.startswith("fastadv") and getattr(module, "run_chunk", None) is original:
                patches.enter_context(mock.patch.object(module, "run_chunk", strict))
        yield
    if not entered:
        raise RuntimeError("run_chunk was not called: the loop has moved, and was not watched")


def _run_strictly(problem: Problem) -> None:
    execution = fastadv.Execution(batching="plain", cuda_graph=False)
    threat = fastadv.Linf(8 / 255)
    for attack in (fastadv.pgd(threat, steps=5, keep="last"), fastadv.apgd_ce(threat, steps=5)):
        attack(problem.model, problem.x, problem.y, execution=execution)  # first calls compile
        with _strict_loop():
            attack(problem.model, problem.x, problem.y, execution=execution)
        print(f"  no synchronisation in the plain loop of {attack!r}")


def _pgd(session: Session, problem: Problem) -> dict[str, Callable[[], Attack]]:
    def ours(**how: Any) -> Callable[[], Attack]:
        def make() -> Attack:
            execution = providers.execution(session.on_gpu, batching="plain", **how)

            def attack(steps: int, eps: float) -> torch.Tensor:
                own = fastadv.pgd(
                    fastadv.Linf(eps),
                    steps=steps,
                    step_size=eps / 4,
                    random_start=False,
                    keep="last",
                )
                return own(problem.model, problem.x, problem.y, execution=execution)

            return attack

        return make

    def theirs() -> Attack:
        return lambda steps, eps: peers.torchattacks(
            Settings("pgd", "linf", eps, eps / 4, steps), problem
        )()

    return {
        "torchattacks": theirs,
        "fastadv": ours(cuda_graph=False),
        "fastadv graph": ours(cuda_graph=True),
    }


def _apgd(session: Session, problem: Problem) -> dict[str, Callable[[], Attack]]:
    def authors() -> Attack:
        folder = session.plan.authors
        module = autoattack_parties.authors_package(None if folder is None else Path(folder))
        model = copy.deepcopy(problem.model)

        def attack(steps: int, eps: float) -> torch.Tensor:
            whole = module.AutoAttack(
                model,
                norm="Linf",
                eps=eps,
                seed=0,
                version="standard",
                verbose=False,
                device=str(problem.x.device),
            )
            whole.apgd.n_iter, whole.apgd.loss = steps, "ce"
            with torch.no_grad():
                return whole.apgd.perturb(problem.x.clone(), problem.y.clone())

        return attack

    def ours(graph: bool) -> Callable[[], Attack]:
        def make() -> Attack:
            execution = providers.execution(session.on_gpu, batching="plain", cuda_graph=graph)
            return lambda steps, eps: fastadv.apgd_ce(fastadv.Linf(eps), steps=steps)(
                problem.model, problem.x, problem.y, execution=execution
            )

        return make

    return {AUTHORS: authors, "fastadv": ours(False), "fastadv graph": ours(True)}


def _robust(problem: Problem, eps: float, x_adv: torch.Tensor) -> str:
    with torch.no_grad():
        claimed = problem.model(x_adv).argmax(1) != problem.y
    return verdict(problem, eps, ~claimed, x_adv)[0]


def _row(
    session: Session,
    problem: Problem,
    case: str,
    name: str,
    found: Counted,
    base: float,
    robust: dict[str, str],
) -> schema.Row:
    first, n = next(iter(robust)), len(problem.x)
    missed, beyond = missed_and_beyond(robust[name], robust[first])
    kernels = max(found.kernels, 0.01)  # a row has positive quantities
    return schema.Row(
        suite=SUITE,
        case=f"{case} step",
        provider=name,
        shape=tuple(problem.x.shape),
        dtype="float32",
        n=n,
        rounds=1,
        q20=kernels,
        q50=kernels,
        q80=kernels,
        unit=UNIT,
        timed=_TIMED,
        not_timed="the model's passes, the start, checks",
        baseline=first,
        ratio=base / kernels,
        equality=schema.Equality(
            max(missed - beyond, 0) / n, max(2, n // 32) / n, _METRIC, f"{first}, same run"
        ),
        environment=session.where,
        extra={"copies": found.copies, "host_launches": found.launches},
    )
