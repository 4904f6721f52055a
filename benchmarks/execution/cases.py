"""What the comparison of fast searches runs: models, attacks, and ways to run them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import fastadv
from benchmarks.autoattack import cases as autoattack_cases
from benchmarks.autoattack.cases import EnsembleCase
from benchmarks.execution.network import small_preact_resnet
from benchmarks.harness.networks import Problem
from fastadv.ensemble.constructor import AutoAttack
from fastadv.threat_model import ThreatModel

EXACT = "fp32"  # the user's model itself, to which all others are held
# slots of every run: fewer than most cases attack, so that samples wait as in a long evaluation
_SLOTS = 64

AnyAttack = fastadv.Attack | AutoAttack


def _execution(**arguments: object) -> fastadv.Execution:
    return fastadv.Execution(batch_size=_SLOTS, **arguments)  # type: ignore[arg-type]


EXECUTIONS: dict[str, fastadv.Execution] = {
    EXACT: _execution(),
    "bf16": _execution(precision="bf16"),
    "bf16, channels_last": _execution(precision="bf16", channels_last=True),
    "channels_last": _execution(channels_last=True),
}
# of a network with BatchNorm
FOLDABLE: dict[str, fastadv.Execution] = EXECUTIONS | {
    "folded": _execution(fold_batchnorm=True),
    "folded, bf16": _execution(fold_batchnorm=True, precision="bf16"),
    "compiled": _execution(compile=True),
}

ATTACKS: dict[str, Callable[[ThreatModel], AnyAttack]] = {
    "PGD-20": lambda threat: fastadv.pgd(threat, steps=20),
    "APGD-CE-50": lambda threat: fastadv.apgd_ce(threat, steps=50),
    "APGD-T": fastadv.apgd_t,
    "AutoAttack": fastadv.autoattack,
}
_BOTH = ("PGD-20", "APGD-CE-50")
_MOST_ROUNDS = {"APGD-T": 1, "AutoAttack": 1}  # of several seconds each


@dataclass(frozen=True)
class SearchedModel:
    """A network with its radius and the attacks on it; executions: by name, the exact one first."""

    source: EnsembleCase
    attacks: tuple[str, ...] = _BOTH
    executions: tuple[str, ...] = tuple(EXECUTIONS)

    @property
    def cases(self) -> list[str]:
        return [f"{attack} {self.source.model}" for attack in self.attacks]

    def load(self, folder: Path, samples: int | None) -> Problem:
        """samples: at most so many."""
        most = min(self.source.samples, samples or self.source.samples)
        if self.source.model == _TRAINED_HERE:
            return small_preact_resnet(folder, most)
        return autoattack_cases.load(self.source, folder, most)


_TRAINED_HERE = "small_preact_resnet"
_STORED = autoattack_cases.CASES
MODELS = (
    SearchedModel(_STORED["mnist_kw_0.1"]),
    SearchedModel(_STORED["mnist_wong_0.3"], (*_BOTH, "APGD-T")),
    SearchedModel(EnsembleCase("mnist_tf", "0.3", 150)),
    SearchedModel(_STORED["cifar_wide_kw"]),
    SearchedModel(replace(_STORED["cifar_madry_8px"], samples=150), (*_BOTH, "AutoAttack")),
    SearchedModel(EnsembleCase("cifar_sgd_8px", "0.5/255", 150)),
    SearchedModel(EnsembleCase(_TRAINED_HERE, "1/255", 150), executions=tuple(FOLDABLE)),
)


def most_rounds(attack: str, rounds: int) -> int:
    return min(rounds, _MOST_ROUNDS.get(attack, rounds))
