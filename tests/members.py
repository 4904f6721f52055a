"""The attacks that are put through the contracts, AutoAttack's among them, and small ensembles."""

import dataclasses
import inspect
from typing import Any, NamedTuple

import torch
from toy_models import Problem, mixed_problem, threat_of

import fastadv
from fastadv.attacks import Attack
from fastadv.attacks.attack import norms_of
from fastadv.ensemble.constructor import AutoAttack

_OF_PRIMAL_DUAL = dict(
    steps=16, step_size=0.006, reduction=1.0, first_ratio=0.1, dual_step_size=0.5
)
_SCALES = {"linf": 0.6, "l2": 0.6, "l1": 0.8}


class Member(NamedTuple):
    """What the contracts of every attack must know of one; the rest they read off its settings.

    budget: a small one. scales: radii, in units of `threat_of`, at which some samples of
    `member_problem` fall at once, some late and some never. passes: forwards and backwards of a
    batch in a step, in calls, with 5 classes. ops: ours in a step. takes_target: whether `target=`
    says where to go; the others choose for themselves. in_l1: more of the budget there.
    """

    budget: dict[str, Any]
    passes: tuple[int, int]
    ops: int
    takes_target: bool
    scales: dict[str, float] = _SCALES
    in_l1: dict[str, Any] = {}


# the one list that a new attack is entered in: what stands here is put through the contracts
ATTACKS = {
    "apgd_ce": Member(
        dict(steps=6, restarts=2),
        passes=(1, 1),
        ops=3,
        takes_target=True,
    ),
    "apgd_dlr": Member(dict(steps=6, restarts=2), passes=(1, 1), ops=3, takes_target=True),
    "apgd_t": Member(
        dict(steps=5, n_target_classes=2),
        passes=(1, 1),
        ops=3,
        takes_target=False,
        in_l1=dict(large_radii=True),
    ),
    "fmn": Member(
        dict(steps=8),
        passes=(1, 1),
        ops=2,
        takes_target=True,
        scales={"linf": 0.6, "l2": 0.6, "l1": 0.5},
    ),
    "ddn": Member(
        dict(steps=12, gamma=0.3),
        passes=(1, 1),
        ops=2,
        takes_target=True,
    ),
    "alma": Member(
        dict(steps=20, check_steps=2, increase=3.0),
        passes=(1, 1),
        ops=2,
        takes_target=True,
        scales={"l2": 0.6},
    ),
    "pdgd": Member(
        _OF_PRIMAL_DUAL,
        passes=(1, 1),
        ops=2,
        takes_target=True,
        scales={"l2": 0.6},
    ),
    "pdpgd": Member(
        _OF_PRIMAL_DUAL | dict(proximal_steps=2),
        passes=(1, 1),
        ops=2,
        takes_target=True,
    ),
    "cw": Member(
        dict(steps=12, search_steps=1, first_constant=10.0, step_size=0.005),
        passes=(1, 1),
        ops=2,
        takes_target=True,
        scales={"linf": 0.6, "l2": 0.6},
    ),
    "sigma_zero": Member(
        dict(steps=12, threshold=0.1),
        passes=(1, 1),
        ops=2,
        takes_target=True,
        scales={"l0": 1.0},
    ),
    # a backward for each class but the label; no further than to the boundary: many steps
    "deepfool": Member(
        dict(steps=8, overshoot=0.0, slack=0.0),
        passes=(1, 4),
        ops=6,
        takes_target=False,
    ),
    "fab": Member(  # a backward for each class
        dict(steps=4, restarts=2),
        passes=(2, 5),
        ops=13,
        takes_target=False,
    ),
    "fab_t": Member(dict(steps=4, n_target_classes=2), passes=(2, 1), ops=4, takes_target=False),
    "square": Member(
        dict(queries=24, restarts=2),
        passes=(1, 0),
        ops=2,
        takes_target=False,
        scales={"linf": 2.2, "l2": 2.2, "l1": 1.4},
    ),
}
MEMBERS = tuple(ATTACKS)
WITH_RESTARTS = tuple(
    name for name in ATTACKS if "restarts" in inspect.signature(getattr(fastadv, name)).parameters
)
GRADIENT_MEMBERS = tuple(name for name, one in ATTACKS.items() if one.passes[1])
# which look for the nearest adversarial point: they draw nothing for their first start, and with
# keep="best" return one at any distance
OF_THE_NEAREST = (
    "ddn",
    "fmn",
    "alma",
    "pdgd",
    "pdpgd",
    "cw",
    "sigma_zero",
    "deepfool",
    "fab",
    "fab_t",
)
# of one family, whose contracts are tested in tests/attacks/call and beside the members'
WITH_FIXED_STEPS = ("fgsm", "rfgsm", "bim", "pgd", "mifgsm")
# which make the attacks above, or call them: tests/attacks/auto_pgd/test_any_loss.py, and joint
OTHER_NAMES = ("apgd", "minimum_norm")


def member(name: str, norm: str, *, scale: float = 1.0, threat=None, **more: object) -> Attack:
    """The attack `name` with a small budget, whose radius suits `member_problem`; of one that has
    not this norm in one that it has."""
    one = ATTACKS[name]
    norms = norms_of(name)
    norm = norm if norm in norms else norms[0]
    threat = threat or threat_of(norm, scale * one.scales[norm])
    in_norm = one.in_l1 if norm == "l1" else {}
    return getattr(fastadv, name)(threat, **(one.budget | in_norm | more))


def of_steps(name: str, steps: int) -> dict[str, int]:
    """The setting that says how many steps: Square calls them queries."""
    return {"queries" if "queries" in ATTACKS[name].budget else "steps": steps}


def of_one_target(name: str) -> dict[str, int]:
    """A single restart and, for what aims at several classes in turn, a single class."""
    aimed = "n_target_classes" in ATTACKS[name].budget
    one_restart = dict(restarts=1) if name in WITH_RESTARTS else {}
    return one_restart | (dict(n_target_classes=1) if aimed else {})


def takes(name: str, **settings: object) -> bool:
    """Whether the attack has such settings."""
    try:
        member(name, "linf", **settings)
    except (TypeError, ValueError):
        return False
    return True


def one_of_each_kind(names: tuple[str, ...] = MEMBERS) -> list[str]:
    """Of the attacks that share an implementation, and the passes of a step, the first."""
    first: dict[tuple, str] = {}
    for name in names:
        first.setdefault((type(member(name, "linf")), ATTACKS[name].passes), name)
    return list(first.values())


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
        if "queries" in ATTACKS[attack.constructor].budget:
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
