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
    """searches: who searches first, from x, and with which share of the passes; tries: taken in
    turn, the next after a failure."""

    searches: tuple[tuple[str, float], ...]
    tries: tuple[Try, ...]


NEAREST, _TURNED, _ANYWHERE = Try("nearest", "same"), Try("nearest", "next"), Try("random", "next")
_PLANS = {
    "linf": Plan((("fmn", 0.08),), (NEAREST, _TURNED, _ANYWHERE)),
    "l2": Plan((("pdpgd", 0.65),), (NEAREST, _TURNED)),
    "l1": Plan((("pdpgd", 0.8),), (NEAREST, _TURNED)),
    # on digits one finds the fewest entries, on photographs the other
    "l0": Plan((("pdpgd", 0.6), ("sigma_zero", 0.3)), (NEAREST,)),
}
_LEAST_PDPGD = 135  # steps, before which its points say little: FMN takes its place
_FEW = {"l2": ("fmn", 0.2), "l1": ("fmn", 0.2), "l0": ("sigma_zero", 0.7)}
_SEARCHES = {"fmn": fmn, "pdpgd": pdpgd, "sigma_zero": sigma_zero}  # of two passes a step


def polish_in(norm: str) -> int:
    """Passes a sample that are kept for `fastadv.attacks.joint.polish`."""
    return 0 if norm == "l0" else 2 * POLISH


def tries_in(norm: str) -> tuple[Try, ...]:
    return _PLANS[norm].tries


def first_searches(threat: ThreatModel, budget: int, seed: int) -> list[Attack]:
    """The attacks that search first, of two passes a step; threat: without a radius. Raises
    ValueError for a budget that leaves them too few steps."""
    if budget < _LEAST:
        raise ValueError(
            f"minimum_norm needs a budget of at least {_LEAST} passes a sample: ten steps of a "
            f"first search, and a round of APGD; got {budget}"
        )
    chosen: dict[str, float] = {}
    for name, share in _PLANS[threat.norm].searches:
        if name == "pdpgd" and share * budget < 2 * _LEAST_PDPGD:
            name, share = _FEW[threat.norm]
        chosen.setdefault(name, share)
    return [
        _SEARCHES[name](threat, steps=max(10, int(share * budget / 2)), seed=seed)
        for name, share in chosen.items()
    ]
