"""A search as it is measured: on a model of its own, prepared, and its verdicts held to fp32's."""

import copy
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

import fastadv
from benchmarks.autoattack.runs import missed_and_beyond, verdict
from benchmarks.execution.cases import EXACT, AnyAttack
from benchmarks.harness import schema
from benchmarks.harness.networks import Problem
from fastadv.threat_model import ThreatModel

_METRIC = (
    "samples whose verdict is another than fp32's in the same run, missed or beyond, every success "
    "confirmed again on the user's fp32 model within eps; at most 1"
)


class Searcher:
    """One execution on a copy of the model: what is kept for a model is kept for four executions.

    preparation: seconds of a first attack of one step, in which the model is copied, checked and
    compiled; None before it.
    """

    def __init__(self, problem: Problem, execution: fastadv.Execution) -> None:
        self.problem = replace(problem, model=copy.deepcopy(problem.model))
        self.execution = execution
        self.preparation: float | None = None

    def prepare(self, threat: ThreatModel) -> None:
        """Raises ExecutionWarning if a part of the execution cannot be had for this model."""
        if self.preparation is not None:
            return
        with warnings.catch_warnings():
            warnings.simplefilter("error", fastadv.ExecutionWarning)
            began = time.perf_counter()
            self.attack(fastadv.pgd(threat, steps=1), self.execution)
            self.preparation = time.perf_counter() - began

    def attack(self, attack: AnyAttack, execution: fastadv.Execution) -> fastadv.AttackResult:
        return attack.run(self.problem.model, self.problem.x, self.problem.y, execution=execution)


class Search:
    """An attack by a searcher. first: of its first call, which also measures what its passes cost
    on their own; the others do not."""

    def __init__(self, searcher: Searcher, attack: AnyAttack) -> None:
        self.searcher, self.attacker = searcher, attack
        self.first: fastadv.AttackResult | None = None

    def __call__(self) -> torch.Tensor:
        """(n,) successes."""
        execution = self.searcher.execution
        if self.first is not None:
            return self.searcher.attack(self.attacker, execution).success
        self.searcher.prepare(self.attacker.threat)
        if execution.compile:  # for batches of one sample too, once the queue is empty
            self.searcher.attack(self.attacker, execution)
        self.first = self.searcher.attack(self.attacker, replace(execution, timed=True))
        return self.first.success


@dataclass
class Verdicts:
    """Compares searches with the exact one, which must be first. masks: "1" for what is robust."""

    problem: Problem
    eps: float
    searches: dict[str, Search]
    masks: dict[str, str] = field(default_factory=dict)

    def check(self, name: str, success: torch.Tensor) -> schema.Equality:
        """Raises ValueError for a success that is none, and beyond one sample of difference."""
        found = self.searches[name].first
        assert found is not None
        mask, refused, _ = verdict(self.problem, self.eps, ~success, found.x_adv)
        if refused:
            raise ValueError(
                f"{refused} successes are not confirmed by the user's fp32 model within eps"
            )
        self.masks[name] = mask
        return schema.Equality(sum(self.differences(name)), 1, _METRIC, EXACT)

    def differences(self, name: str) -> tuple[int, int]:
        """(missed, beyond): samples that fp32 alone broke, and that this one alone broke."""
        return missed_and_beyond(self.masks[name], self.masks[EXACT])


def process_clock(run: Callable[[], object]) -> float:
    """Seconds of process time: other processes on the machine do not count."""
    began = time.process_time()
    run()
    return time.process_time() - began
