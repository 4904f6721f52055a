"""What `fastadv.minimum_norm` does in each norm: who searches first, and how it goes on."""

from typing import Literal, NamedTuple

from fastadv.attacks.attack import Attack
from fastadv.attacks.hyperplane.attack import fab_t
from fastadv.attacks.nearest.attack import fmn
from fastadv.attacks.nearest.sparse_attack import sigma_zero
from fastadv.threat_model import ThreatModel

ROUND = 10  # steps of APGD in a smaller ball; 5 and 20 found less on tuning points
POLISH = 5  # passes of one of its two turns
_LEAST = 60  # passes: ten steps of the first search, and a round


class Try(NamedTuple):
    """One way to look for a nearer point. start: at the nearest point so far, drawn into the
    smaller ball, or anywhere in it; class_aimed: that of the nearest point, or the likeliest others
    in turn."""

    start: Literal["nearest", "random"]
    class_aimed: Literal["same", "next"]


class Plan(NamedTuple):
    """share: of the passes that the first search takes; tries: taken in turn, the next after a
    failure."""

    search: str
    share: float
    tries: tuple[Try, ...]


NEAREST, _TURNED, _ANYWHERE = Try("nearest", "same"), Try("nearest", "next"), Try("random", "next")
_PLANS = {
    "linf": Plan("fmn", 0.08, (NEAREST, _TURNED, _ANYWHERE)),
    "l2": Plan("fab_t", 0.5, (NEAREST, _TURNED)),
    "l1": Plan("fab_t", 0.5, (NEAREST, _TURNED)),
    "l0": Plan("sigma_zero", 0.7, (NEAREST,)),
}
_SEARCHES = {"fmn": fmn, "sigma_zero": sigma_zero}  # of two passes a step
_CLASSES = 3  # that FAB aims at in turn, with three passes a step


def polish_in(norm: str) -> int:
    """Passes a sample that are kept for `fastadv.attacks.joint.polish`."""
    return 0 if norm == "l0" else 2 * POLISH


def tries_in(norm: str) -> tuple[Try, ...]:
    return _PLANS[norm].tries


def first_search(threat: ThreatModel, budget: int, seed: int) -> Attack:
    """The attack that searches first; threat: without a radius. Raises ValueError for a budget that
    leaves it too few steps."""
    if budget < _LEAST:
        raise ValueError(
            f"minimum_norm needs a budget of at least {_LEAST} passes a sample: ten steps of a "
            f"first search, and a round of APGD; got {budget}"
        )
    plan = _PLANS[threat.norm]
    if plan.search == "fab_t":
        steps = max(2, int(plan.share * budget / (3 * _CLASSES)))
        return fab_t(threat, steps=steps, n_target_classes=_CLASSES, seed=seed)
    return _SEARCHES[plan.search](threat, steps=max(10, int(plan.share * budget / 2)), seed=seed)


def passes_of(search: Attack, classes: int) -> int:
    """Passes a sample of a first search, of a model with so many classes, with the one that
    confirms what it has found."""
    return search.steps * (2 if search.most_targets == 0 else 3 * min(_CLASSES, classes - 1)) + 1
