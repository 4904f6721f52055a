"""Who attacks clamping models: fastadv with and without its mend, textbook loops, other libraries.

A provider takes a case and a problem, attacks it once, and says what it found and whether it warned
that the model clamps. Nobody's word on a success is taken: see `clamping`.
"""

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch

import fastadv
from benchmarks import reference
from benchmarks.autoattack import entrants as autoattack_entrants
from benchmarks.autoattack.entrants import Budget
from benchmarks.clamping.cases import FEW_FORMS, FORMS, ClampingCase
from benchmarks.harness import peers
from benchmarks.harness.networks import Problem
from benchmarks.harness.peers import Unavailable

MENDED = "fastadv"
UNMENDED = "fastadv, unmended"
_SLOTS = 64


@dataclass(frozen=True)
class Outcome:
    """x_adv: (n, ...). warned: of clamping. passes: (forwards, backwards), where they are known."""

    x_adv: torch.Tensor
    warned: bool = False
    inset: float = 0.0
    passes: tuple[int, int] | None = None


Provider = Callable[[ClampingCase, Problem, float], Outcome]


def forms(name: str, case: ClampingCase) -> tuple[str, ...]:
    """The ways to clamp that a provider is run on: all of them, or a few where it takes long."""
    if case.name == "AutoAttack" or case.is_slow and name not in (MENDED, UNMENDED):
        return FEW_FORMS
    return FORMS


def _fastadv(inset: float | None) -> Provider:
    def run(case: ClampingCase, problem: Problem, eps: float) -> Outcome:
        execution = fastadv.Execution(batch_size=_SLOTS, inset=inset)
        attack = case.ours(eps)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = attack.run(problem.model, problem.x, problem.y, execution=execution)
        passes = result.forwards, result.backwards
        return Outcome(result.x_adv, _is_warned(caught), result.inset, passes)

    return run


def _textbook(case: ClampingCase, problem: Problem, eps: float) -> Outcome:
    chosen = case.settings(eps)
    attacked = (problem.model, problem.x, problem.y)
    steps = {"steps": case.steps, "step_size": chosen.step_size}
    if case.kind == "mifgsm":
        return Outcome(reference.mifgsm(*attacked, eps=eps, **steps))
    if case.kind is None:
        raise Unavailable(f"no textbook loop of {case.name}")
    return Outcome(
        reference.pgd(*attacked, eps=eps, norm=case.norm, random_start=case.random_start, **steps)
    )


def _peer(driver: peers.Driver) -> Provider:
    def run(case: ClampingCase, problem: Problem, eps: float) -> Outcome:
        if case.kind is None:
            raise Unavailable("compared in FGSM, PGD and MI-FGSM alone")
        attack = driver(case.settings(eps), problem)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            x_adv = attack()
        return Outcome(x_adv.detach(), _is_warned(caught))

    return run


def _is_warned(caught: list[warnings.WarningMessage]) -> bool:
    return any(getattr(w.message, "code", "") == "clamped_input" for w in caught)


def _torchattacks(case: ClampingCase, problem: Problem, eps: float) -> Outcome:
    if case.kind is not None:
        return _peer(peers.torchattacks)(case, problem, eps)
    return _cascade(autoattack_entrants.torchattacks, case, problem, eps)


def _cascade(
    build: autoattack_entrants.Build, case: ClampingCase, problem: Problem, eps: float
) -> Outcome:
    if case.kind is not None:
        raise Unavailable("has AutoAttack and its attacks alone")
    entrant = build(problem, eps, Budget(steps=case.steps))
    members = range(len(autoattack_entrants.NAMES)) if case.member is None else [case.member]
    for member in members:
        entrant.attack(member)
    return Outcome(entrant.x_adv)


def providers(authors: ModuleType | None) -> dict[str, Provider]:
    """All by name; authors: the package of AutoAttack's authors, if it is there."""
    found: dict[str, Provider] = {
        MENDED: _fastadv(None),
        UNMENDED: _fastadv(0.0),
        "fastadv.compat.torchattacks": _peer(peers.fastadv_compat),
        "textbook": _textbook,
        "torchattacks": _torchattacks,
        "foolbox": _peer(peers.foolbox),
        "art": _peer(peers.art),
    }
    if authors is not None:
        found["autoattack"] = functools.partial(_cascade, autoattack_entrants.authors(authors))
    return found


def seed_generators(seed: int) -> None:
    """What other libraries and the textbook loops draw their starts from."""
    torch.manual_seed(seed)
    np.random.seed(seed)
