"""AutoAttack with what `tune` chooses among fp32 and bf16, beside the default, and its verdicts."""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

import fastadv
from benchmarks.autoattack.runs import missed_and_beyond, verdict
from benchmarks.execution.runs import process_clock
from benchmarks.harness import harness, networks, schema
from benchmarks.harness.networks import Problem
from benchmarks.tuning.networks import fast_cifar, small_preact, small_vit
from fastadv.ensemble.constructor import AutoAttack
from fastadv.threat_model import ThreatModel

SUITE = "tuning_autoattack"
DEFAULT = "default"
TUNED = "tune, fp32 and bf16"
PROBLEMS: dict[str, Callable[[int], Problem]] = {
    "fast_cifar_net": fast_cifar,
    "small PreActResNet": small_preact,
    "SmallViT": small_vit,
}
_MOST = 1  # of the samples
_METRIC = (
    "samples whose verdict is another than the default's, missed or beyond, before the final pass; "
    "every success confirmed again on the fp32 model within eps"
)
_TIMED = "process time of the ensemble on n samples in memory; of copies without the final pass"
_HALF = (0.4, 0.6)  # of the samples that the radius leaves to APGD-CE-20


def radius_for(problem: Problem, *, samples: int = 64) -> float:
    """A radius in L-infinity at which APGD-CE with 20 steps leaves about half of the samples."""
    x, y = problem.x[:samples], problem.y[:samples]
    low, high = 0.0, 16 / 255
    for _ in range(10):
        eps = (low + high) / 2
        found = fastadv.apgd_ce(fastadv.Linf(eps), steps=20).run(problem.model, x, y)
        left = 1 - float(found.success.double().mean())
        if _HALF[0] <= left <= _HALF[1]:
            break
        low, high = (eps, high) if left > _HALF[1] else (low, eps)
    return eps


@dataclass
class _Run:
    """One way to run the ensemble, on a model of its own."""

    problem: Problem
    attack: AutoAttack
    execution: fastadv.Execution
    results: list[fastadv.AttackResult] = field(default_factory=list)

    def __call__(self) -> torch.Tensor:
        result = self.attack.run(
            self.problem.model, self.problem.x, self.problem.y, execution=self.execution
        )
        self.results.append(result)
        return result.success


def run_problem(
    problem: Problem,
    where: schema.Environment,
    *,
    rounds: int,
    seconds: float,
    make: Callable[[ThreatModel], AutoAttack],
) -> list[schema.Row]:
    """Rows of the default and of the tuned ensemble; the final pass apart, in `extra`."""
    eps = radius_for(problem)
    ensemble = make(fastadv.Linf(eps))
    began = time.perf_counter()
    found = fastadv.tune(problem.model, problem.x, seconds=seconds, precisions=("fp32", "bf16"))
    tuned_in = time.perf_counter() - began
    ways = {DEFAULT: fastadv.Execution(), TUNED: found}
    runs = {
        name: _Run(
            replace(problem, model=copy.deepcopy(problem.model)),
            ensemble,
            way,
        )
        for name, way in ways.items()
    }
    masks: dict[str, str] = {}

    def check(name: str, success: torch.Tensor) -> schema.Equality:
        (result,) = runs[name].results
        masks[name], refused, _ = verdict(problem, eps, ~success, result.x_adv)
        if refused:
            raise ValueError(f"{refused} successes are not confirmed within eps")
        error = sum(missed_and_beyond(masks[name], masks[DEFAULT]))
        return schema.Equality(error, _MOST, _METRIC, DEFAULT)

    rows = harness.measure(
        harness.Case(
            suite=SUITE,
            name=f"AutoAttack {ensemble.version}, {problem.name}",
            shape=tuple(problem.x.shape),
            dtype="float32",
            n=len(problem.x),
            timed=_TIMED,
            not_timed="import, tuning, the first call, the final pass",
            baseline=DEFAULT,
        ),
        runs,
        check,
        where,
        harness.Timing(rounds, warmup=0, clock=process_clock),
    )
    final = _final_pass(runs[TUNED], found)
    told = {
        "tuned in s": round(tuned_in, 1),
        "batch": found.batch_size or 0,
        "channels_last": int(found.channels_last),
        "folded": int(found.fold_batchnorm),
        "bf16": int(found.precision == "bf16"),
        **final,
    }
    return [
        replace(
            row,
            extra=told if row.provider == TUNED else {},
            robustness=_robustness(problem, eps, masks[row.provider], ensemble.attacks[0]),
        )
        for row in rows
    ]


def _final_pass(run: _Run, found: fastadv.Execution) -> dict[str, float]:
    """What the final pass by the model itself costs and breaks, of one run more."""
    if found.is_exact:
        return {}
    cost = replace(run, execution=replace(found, final_pass=True), results=[])
    cost()
    spent = cost.results[0].cost
    return {
        "final pass in s": round(spent.final_seconds, 2),
        "final pass broke": spent.final_broken,
        "with final pass in s": round(spent.seconds, 2),
    }


def _robustness(
    problem: Problem, eps: float, mask: str, first: fastadv.Attack
) -> schema.Robustness:
    return schema.Robustness(
        attack="AutoAttack",
        norm="linf",
        eps=eps,
        step_size=float(first.effective_step_size),
        steps=first.steps,
        restarts=1,
        seed=0,
        n=len(problem.x),
        model=problem.name,
        data=problem.data,
        clean_accuracy=networks.accuracy(problem, problem.x),
        robust_accuracy=mask.count("1") / len(mask),
    )
