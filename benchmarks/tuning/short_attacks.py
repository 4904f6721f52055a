"""Attacks of few steps on 1,000 samples with execution="auto", beside torchattacks' on the same."""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

import fastadv
from benchmarks.attacks import __main__ as attacks
from benchmarks.execution.runs import process_clock
from benchmarks.harness import harness, networks, peers, schema
from benchmarks.harness.networks import Problem
from benchmarks.harness.peers import Settings

SUITE = "tuning_attacks"
AUTO = 'fastadv, execution="auto"'
DEFAULT = "fastadv, default"
_PEER = "torchattacks"
_TIMED = (
    "process time of one call on n samples in memory, warm, keep='last'; torchattacks: one batch"
)
_METRIC = "difference of robust accuracy, of at most one sample in 100: layouts round otherwise"
_SHARE = 0.01


@dataclass(frozen=True)
class Kind:
    """An attack; radii and step sizes are those of `benchmarks.attacks` for each network."""

    name: str
    kind: str
    steps: int
    norm: str = "linf"

    def settings(self, network: str) -> Settings:
        eps = {"linf": 0.15, "l2": 0.75}[self.norm]
        eps = 8 / 255 if network == "BatchNormNet" and self.norm == "linf" else eps
        step = {"fgsm": eps, "mifgsm": eps / 10}.get(self.kind, 4 * eps / self.steps)
        return Settings(
            kind=self.kind,
            norm=self.norm,  # type: ignore[arg-type]
            eps=eps,
            step_size=step,
            steps=self.steps,
        )


KINDS = (
    Kind("FGSM", "fgsm", 1),
    Kind("PGD-10", "pgd", 10),
    Kind("PGD-40", "pgd", 40),
    Kind("PGD-L2-40", "pgd", 40, "l2"),
    Kind("MI-FGSM-10", "mifgsm", 10),
)


def run_case(
    kind: Kind, network: str, problem: Problem, where: schema.Environment, *, rounds: int
) -> list[schema.Row]:
    """Rows of torchattacks, of the default and of "auto", whose tuning is not timed but told."""
    settings = kind.settings(network)
    made = attacks.fastadv_attack(settings, "last")
    own, plain, peer = (
        replace(problem, model=copy.deepcopy(problem.model).requires_grad_(True)) for _ in range(3)
    )
    tuned: list[float] = []

    def auto() -> torch.Tensor:
        began = time.perf_counter()
        x_adv = made(own.model, own.x, own.y, execution="auto")
        tuned.append(time.perf_counter() - began)
        return x_adv

    runs: dict[str, Callable[[], torch.Tensor]] = {
        _PEER: peers.torchattacks(settings, peer),
        DEFAULT: lambda: made(plain.model, plain.x, plain.y),
        AUTO: auto,
    }
    expected = networks.accuracy(problem, runs[_PEER]())

    def check(name: str, x_adv: torch.Tensor) -> schema.Equality:
        threat = made.threat
        if name != _PEER and not bool(fastadv.contains(threat, x_adv, problem.x).all()):
            raise ValueError("an example lies outside of its radius or of the bounds")
        error = abs(networks.accuracy(problem, x_adv) - expected)
        return schema.Equality(error, _SHARE, _METRIC, _PEER)

    rows = harness.measure(
        harness.Case(
            suite=SUITE,
            name=f"{kind.name} {network}",
            shape=tuple(problem.x.shape),
            dtype="float32",
            n=len(problem.x),
            timed=_TIMED,
            not_timed="import, construction, the first call, in which fastadv tunes",
            baseline=_PEER,
        ),
        runs,
        check,
        where,
        harness.Timing(rounds, warmup=0, clock=process_clock),
    )
    found = made.run(own.model, own.x[:1], own.y[:1], execution="auto").execution
    return [
        replace(row, extra=_told(found, tuned[0])) if row.provider == AUTO else row for row in rows
    ]


def _told(found: fastadv.Execution, seconds: float) -> dict[str, float]:
    return {
        "first call in s": round(seconds, 2),
        "batch": found.batch_size or 0,
        "channels_last": int(found.channels_last),
        "folded": int(found.fold_batchnorm),
    }
