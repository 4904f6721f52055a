"""Section "autoattack": AutoAttack from end to end against its authors' code, on a trained network.

The network is trained here for a share of the section's time: with Fast-AT on CIFAR-10 where --data
names its folder, else on patterns in noise that are made on the device.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import fastadv
from benchmarks.autoattack import parties as autoattack_parties
from benchmarks.autoattack.entrants import AUTHORS, Budget
from benchmarks.autoattack.runs import missed_and_beyond, verdict
from benchmarks.gpu import attack_providers as providers
from benchmarks.gpu import networks as gpu_networks
from benchmarks.gpu.attacks import seconds_of
from benchmarks.gpu.session import Session
from benchmarks.gpu.training_data import Task, trained
from benchmarks.harness import schema
from benchmarks.harness.networks import Problem

SUITE = "gpu_autoattack"
OURS = "fastadv fp32"
_TIMED = "wall time of one run, everything included, all samples in one batch; run once"
_NOT_TIMED = "import, training of the network, a run of few steps that compiles kernels"
_METRIC = (
    "points that the reference broke and this one missed, less those it broke beyond, over n; "
    "tolerance one in 250, at least one"
)
# (images, budget), the first that the time suffices for: the standard version, else shorter ones
_SIZES = (
    (1000, Budget()),
    (128, Budget()),
    (128, Budget(100, 2000, 4)),
    (128, Budget(50, 500, 2)),
    (128, Budget(10, 100, 1)),
)
_REHEARSED = Budget(4, 20, 1)
_FOR_THE_AUTHORS = 0.45  # of the time left; what has fallen already makes it less than predicted
_VARIANTS: dict[str, dict[str, Any]] = {
    "fastadv fp32 graph": {"cuda_graph": True},
    "fastadv bf16 graph channels_last folded": {
        "cuda_graph": True,
        "precision": "bf16",
        "channels_last": True,
        "fold_batchnorm": True,
    },
}


@dataclass(frozen=True)
class Found:
    """One run: seconds, who is still robust by the benchmark's own verdict, and its figures."""

    seconds: float
    robust: str
    extra: dict[str, float]


Attack = Callable[[], tuple[torch.Tensor, dict[str, float]]]  # to x_adv and figures


def main(session: Session) -> None:
    task = Task.of(session)
    problem = trained(session, task, seconds=0.25 * session.left)
    eps = 8 / 255 if task.is_real else gpu_networks.radius_for_half(problem)
    problem, budget = _fitting(session, problem)
    runs: dict[str, Attack] = {OURS: _ours(problem, eps, budget, {"cuda_graph": False})}
    with session.guarded(AUTHORS):
        runs[AUTHORS] = _authors(problem, eps, budget, session.plan.authors)
    for name, execution in _VARIANTS.items():
        with session.guarded(name):
            runs[name] = _ours(problem, eps, budget, execution)
    print(f"{problem.name}, n={len(problem.x)}, eps {eps:.3g}, {budget}")
    done: dict[str, Found] = {}
    written: set[str] = set()

    def write() -> None:
        baseline = next(name for name in (AUTHORS, OURS, *done) if name in done)
        for name in [name for name in done if name not in written]:
            written.add(name)
            with session.guarded(f"{name}, verdict"):
                session.add([_row(session, problem, eps, budget, name, baseline, done)])

    try:
        for name, run in runs.items():
            if session.may_begin(name):
                with session.guarded(name):
                    done[name] = _timed(session, problem, eps, run)
            # ours waits for the baseline beside it
            if done and (name != OURS or AUTHORS not in runs):
                write()
    finally:  # also where the time is up in the middle of one
        if done:
            write()


def _timed(session: Session, problem: Problem, eps: float, run: Attack) -> Found:
    if session.on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    x_adv, extra = run()
    if session.on_gpu:
        torch.cuda.synchronize()
        extra["peak_memory_mib"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
    seconds = time.perf_counter() - began
    with torch.no_grad():
        claimed = problem.model(x_adv).argmax(1) != problem.y
    return Found(seconds, verdict(problem, eps, ~claimed, x_adv)[0], extra)


def _fitting(session: Session, problem: Problem) -> tuple[Problem, Budget]:
    """As many images and as much of the budget as the authors' code is predicted to get through."""
    if session.tiny:
        return problem, _REHEARSED
    for n, budget in _SIZES[:-1]:
        part = replace(problem, x=problem.x[:n], y=problem.y[:n])
        if _predicted(part, budget) < _FOR_THE_AUTHORS * session.left:
            return part, budget
    n, budget = _SIZES[-1]
    return replace(problem, x=problem.x[:n], y=problem.y[:n]), budget


def _predicted(problem: Problem, budget: Budget) -> float:
    """Seconds of the authors' code where nothing falls."""

    def forward() -> torch.Tensor:
        with torch.no_grad():
            return problem.model(problem.x)

    once = seconds_of(forward)
    both = seconds_of(gpu_networks.bare_passes(problem, "fp32", channels_last=False, count=1))
    launches = 5e-6  # seconds of a host a launch
    steps = budget.steps * (1 + 2 * budget.targets)
    queries = budget.queries + budget.steps * budget.targets
    ops = 70 * budget.queries + budget.steps * (60 + 460 * budget.targets)
    return queries * once + 1.5 * steps * both + ops * launches


def _ours(problem: Problem, eps: float, budget: Budget, execution: dict[str, Any]) -> Attack:
    threat = fastadv.Linf(eps)
    on_gpu = problem.x.device.type == "cuda"
    how = providers.execution(on_gpu, batch_size=len(problem.x), **execution)

    def ensemble(own: Budget) -> Any:
        if own == Budget():
            return fastadv.autoattack(threat)
        targeted: dict[str, Any] = {"steps": own.steps, "n_target_classes": own.targets}
        return fastadv.autoattack(
            threat,
            version="custom",
            attacks=(
                fastadv.apgd_ce(threat, steps=own.steps),
                fastadv.apgd_t(threat, **targeted),
                fastadv.fab_t(threat, **targeted),
                fastadv.square(threat, queries=own.queries),
            ),
        )

    # not timed: kernels are compiled at their first call
    ensemble(Budget(4, 4, 1)).run(problem.model, problem.x, problem.y, execution=how)

    def run() -> tuple[torch.Tensor, dict[str, float]]:
        result = ensemble(budget).run(problem.model, problem.x, problem.y, execution=how)
        extra = {f"{stage.name} seconds": round(stage.seconds, 3) for stage in result.stages}
        extra |= {"forwards": result.forwards, "backwards": result.backwards}
        return result.x_adv, extra

    return run


def _authors(problem: Problem, eps: float, budget: Budget, folder: str | None) -> Attack:
    module = autoattack_parties.authors_package(None if folder is None else Path(folder))
    whole = module.AutoAttack(
        problem.model,
        norm="Linf",
        eps=eps,
        seed=0,
        version="standard",
        verbose=False,
        device=str(problem.x.device),
    )
    for member in (whole.apgd, whole.apgd_targeted, whole.fab):
        member.n_iter = budget.steps
    for member in (whole.apgd_targeted, whole.fab):
        member.n_target_classes = budget.targets
    whole.square.n_queries = budget.queries

    def run() -> tuple[torch.Tensor, dict[str, float]]:
        size = len(problem.x)
        return whole.run_standard_evaluation(problem.x, problem.y, bs=size).detach(), {}

    return run


def _row(
    session: Session,
    problem: Problem,
    eps: float,
    budget: Budget,
    name: str,
    baseline: str,
    done: dict[str, Found],
) -> schema.Row:
    own, base, n = done[name], done[baseline], len(problem.x)
    missed, beyond = missed_and_beyond(own.robust, base.robust)
    with torch.no_grad():
        clean = float((problem.model(problem.x).argmax(1) == problem.y).double().mean())
    where = session.where
    versions = where.versions | autoattack_parties.authors_version()
    standard = (
        "standard"
        if budget == Budget()
        else f"shortened: {budget.queries} queries, " + (f"{budget.targets} targets")
    )
    return schema.Row(
        suite=SUITE,
        case=f"AutoAttack {problem.name}",
        provider=name,
        shape=tuple(problem.x.shape),
        dtype="float32",
        n=n,
        rounds=1,
        q20=own.seconds,
        q50=own.seconds,
        q80=own.seconds,
        unit="s",
        timed=_TIMED,
        not_timed=_NOT_TIMED,
        baseline=baseline,
        ratio=base.seconds / own.seconds,
        equality=schema.Equality(
            max(missed - beyond, 0) / n, math.ceil(n / 250) / n, _METRIC, f"{baseline}, same run"
        ),
        environment=replace(where, versions=versions),
        robustness=schema.Robustness(
            attack=f"AutoAttack, {standard}",
            norm="linf",
            eps=eps,
            step_size=2 * eps,
            steps=budget.steps,
            restarts=1,
            seed=0,
            n=n,
            model=problem.name,
            data=problem.data,
            clean_accuracy=clean,
            robust_accuracy=own.robust.count("1") / n,
        ),
        extra=own.extra | {"missed": missed, "beyond": beyond},
    )
