"""What `fastadv.minimum_norm` does in each norm: who searches first, and how it goes on."""

from typing import Literal, NamedTuple

from fastadv.attacks.attack import Attack
from fastadv.attacks.nearest.attack import fmn
from fastadv.attacks.nearest.primal_dual_attack import pdpgd
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
    "l2": Plan("pdpgd", 0.65, (NEAREST, _TURNED)),
    "l1": Plan("pdpgd", 0.55, (NEAREST, _TURNED)),
    "l0": Plan("sigma_zero", 0.7, (NEAREST,)),
}
_FEW = Plan("fmn", 0.2, (NEAREST, _TURNED))  # in place of PDPGD, whose first steps say little
_LEAST_PDPGD = 135  # steps
_SEARCHES = {"fmn": fmn, "pdpgd": pdpgd, "sigma_zero": sigma_zero}  # of two passes a step


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
    if plan.search == "pdpgd" and plan.share * budget < 2 * _LEAST_PDPGD:
        plan = _FEW
    return _SEARCHES[plan.search](threat, steps=max(10, int(plan.share * budget / 2)), seed=seed)
