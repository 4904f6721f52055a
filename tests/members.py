"""The attacks that are put through the contracts, AutoAttack's among them, and small ensembles."""

import dataclasses

import torch
from toy_models import Problem, mixed_problem, threat_of

import fastadv
from fastadv.attacks import Attack
from fastadv.ensemble.constructor import AutoAttack

# radii at which some samples of `member_problem` fall at once, some late and some never
_SCALES = {"linf": 0.6, "l2": 0.6, "l1": 0.8}
_SQUARE_SCALES = {"linf": 2.2, "l2": 2.2, "l1": 1.4}
# an attack that has an entry here is put through the contracts, whatever its family
_BUDGETS = {
    "apgd_ce": dict(steps=6, restarts=2),
    "apgd_dlr": dict(steps=6, restarts=2),
    "apgd_t": dict(steps=5, n_target_classes=2),
    "fab": dict(steps=4, restarts=2),
    "fab_t": dict(steps=4, n_target_classes=2),
    "square": dict(queries=24, restarts=2),
}
MEMBERS = tuple(_BUDGETS)
GRADIENT_MEMBERS = tuple(name for name in MEMBERS if name != "square")
# of one family, whose contracts are tested in tests/attacks/call and beside the members'
WITH_FIXED_STEPS = ("fgsm", "rfgsm", "bim", "pgd", "mifgsm")


def member(name: str, norm: str, *, scale: float = 1.0, threat=None, **more: object) -> Attack:
    """The attack `name` with a small budget, whose radius suits `member_problem`."""
    if threat is None:
        scales = _SQUARE_SCALES if name == "square" else _SCALES
        threat = threat_of(norm, scale * scales[norm])
    budget: dict = _BUDGETS[name] | more
    if name == "apgd_t" and norm == "l1":
        budget = dict(large_radii=True) | budget
    return getattr(fastadv, name)(threat, **budget)


def member_problem(n: int = 40, shape: tuple[int, ...] = (3, 5, 6), **more) -> Problem:
    return mixed_problem(n, shape, **({"curvature": 3.0, "seed": 1} | more))


def custom_ensemble(norm: str, *, scale: float = 1.0, threat=None, **more) -> AutoAttack:
    """An ensemble each of whose members is to break some samples of `member_problem`."""
    threat = threat or threat_of(norm, scale)
    attacks = [
        fastadv.apgd_ce(threat, steps=1),
        fastadv.apgd_dlr(threat, steps=2),
        fastadv.fab_t(threat, steps=2, n_target_classes=1),
        fastadv.square(threat, queries=20),
        fastadv.apgd_t(threat, steps=6, n_target_classes=3),
        fastadv.fab(threat, steps=6),
    ]
    return fastadv.autoattack(threat, version="custom", attacks=attacks, **more)


def small(ensemble: AutoAttack) -> AutoAttack:
    """`ensemble` with budgets of a few steps."""

    def shortened(attack: Attack) -> Attack:
        if attack.constructor == "square":
            return dataclasses.replace(attack, queries=20)
        more = dict(steps=4, restarts=min(attack.restarts, 2))
        if attack.most_targets:
            more["n_target_classes"] = min(attack.most_targets, 2)
        if getattr(attack, "passes", 1) > 1:
            more["eot"] = 2
        return dataclasses.replace(attack, **more)

    return dataclasses.replace(ensemble, attacks=tuple(map(shortened, ensemble.attacks)))


def assert_varied(result: fastadv.AttackResult, y: torch.Tensor) -> None:
    """Clean-wrong samples, some that fall at different steps, and some that never do.

    Without this, a test of what happens to them could not fail.
    """
    wrong = result.clean_prediction != y
    steps = result.step[~wrong]
    assert wrong.any() and (steps == -1).any(), steps.tolist()
    assert len(steps[steps >= 0].unique()) >= 2, steps.tolist()
