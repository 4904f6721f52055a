"""Adversarial examples as 8-bit images: rounded to k / 255 without leaving the eps-ball."""

import torch

from fastadv.data.images import to_unit_interval
from fastadv.elements import common_bounds, has_elements
from fastadv.ops import doubles
from fastadv.threat_model import ThreatModel, check_threat

_LEVELS = 255
_ROUNDOFF = 2.0**-24  # of the float32 that the bytes are decoded to, as in contract C3


def to_uint8(x_adv: torch.Tensor, x: torch.Tensor, threat: ThreatModel) -> torch.Tensor:
    """x_adv as bytes whose decoded image, to_unit_interval(bytes), lies in the eps-ball around x.

    Each element goes to the nearest of the 256 levels; where that leaves the ball, elements that
    were rounded outwards go one level towards x, the farthest rounded first, until it does not.
    x_adv, x: (B, ...) in [0, 1]; bounds of the threat model must be (0, 1). "In the ball" is that
    of `fastadv.contains`, decided in float64: rounding can undo a success, so verify again.
    In L0 all go to the nearest level. Raises ValueError if no 8-bit image lies in the ball (eps
    below half a level, or L0, and x not 8-bit).

    Example: `to_uint8(attack(model, x, y), x, fastadv.Linf(8 / 255))`.
    """
    for name, value in (("x_adv", x_adv), ("x", x)):
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"{name} must be a torch.Tensor; got {type(value).__name__}")
    check_threat(threat)
    if common_bounds(threat) != (0.0, 1.0):
        raise ValueError(f"threat must have bounds (0, 1) for 8-bit images; got {threat.bounds}")
    if has_elements(threat):
        raise ValueError(f"threat must have one radius for all elements; got {threat!r}")
    if x_adv.shape != x.shape:
        raise ValueError(
            f"x_adv and x must share a shape; got {tuple(x_adv.shape)}, {tuple(x.shape)}"
        )
    if not bool(((x_adv >= 0) & (x_adv <= 1)).all()):
        raise ValueError("x_adv must lie in [0, 1], without NaN")
    if x.numel() == 0:
        return x_adv.to(torch.uint8)
    clean, wanted = (doubles.doubled(t).reshape(len(x), -1) for t in (x, x_adv))
    radius = threat.eps
    if not isinstance(radius, torch.Tensor):
        radius = torch.tensor(radius, dtype=torch.float64)
    radius = doubles.doubled(radius, beside=x).expand(len(x))
    if threat.norm == "l0":
        return _counted(threat, x, wanted, clean, radius)
    limit = radius * (1 + 1e-6) + _ROUNDOFF * threat.rounding(clean.shape[1])
    levels = (wanted * _LEVELS).round()
    if threat.norm == "linf":
        levels = _shrink_elements(levels, clean, limit)
    else:
        levels = _shrink_sum(levels, wanted, clean, limit, power=1 if threat.norm == "l1" else 2)
    outside = _distance(_decoded(levels), clean, threat.norm) > limit
    if bool(outside.any()):
        raise ValueError(_why_outside(outside, wanted, clean, radius, threat.norm))
    return doubles.returned(levels.to(torch.uint8), x).reshape(x.shape)


def _counted(
    threat: ThreatModel,
    x: torch.Tensor,
    wanted: torch.Tensor,
    clean: torch.Tensor,
    radius: torch.Tensor,
) -> torch.Tensor:
    """The nearest levels, where no more of them differ from x than may."""
    levels = (wanted * _LEVELS).round()
    count = threat.distance(_decoded(levels).reshape(x.shape), clean.reshape(x.shape))
    outside = count > radius
    if bool(outside.any()):
        raise ValueError(
            f"no 8-bit image differs from x in at most eps for {int(outside.sum())} of {len(x)} "
            f"samples, but in {int(count[outside][0])} with eps={float(radius[outside][0]):g}: "
            "either x is not 8-bit itself, or x_adv lies outside; save floats"
        )
    return doubles.returned(levels.to(torch.uint8), x).reshape(x.shape)


def _shrink_elements(
    levels: torch.Tensor, clean: torch.Tensor, limit: torch.Tensor
) -> torch.Tensor:
    """One level towards x wherever the nearest level is farther from x than the limit."""
    for _ in range(2):  # x_adv may itself lie a rounding outside
        outside = (_decoded(levels) - clean).abs() > limit[:, None]
        levels = torch.where(outside, _towards(levels, clean), levels)
    return levels


def _shrink_sum(
    levels: torch.Tensor, wanted: torch.Tensor, clean: torch.Tensor, limit: torch.Tensor, power: int
) -> torch.Tensor:
    """The same where the distance sums over elements: as few moves as bring it under the limit."""
    budget = limit**power
    for _ in range(_LEVELS):
        here = (_decoded(levels) - clean).abs() ** power
        excess = here.sum(1) - budget
        nearer = _towards(levels, clean)
        gain = here - (_decoded(nearer) - clean).abs() ** power
        if not bool(((excess > 0) & (gain > 0).any(1)).any()):
            break
        # how far an element was rounded outwards: those rounded farthest come back first
        outwards = (_decoded(levels) - wanted) * (levels - nearer)
        outwards = outwards.masked_fill(gain <= 0, -torch.inf)
        order = outwards.argsort(dim=1, descending=True, stable=True)
        gains = gain.clamp(min=0).gather(1, order)
        # an element moves while those before it have not won back the excess
        needed = (gains.cumsum(1) - gains < excess[:, None]) & (excess > 0)[:, None] & (gains > 0)
        moves = torch.zeros_like(needed).scatter(1, order, needed)
        levels = torch.where(moves, nearer, levels)
    return levels


def _towards(levels: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    """One level nearer to x, or the same where x is nearest to it already."""
    return levels + ((clean * _LEVELS).round() - levels).clamp(-1, 1)


def _decoded(levels: torch.Tensor) -> torch.Tensor:
    """The float32 that a reader of the bytes gets, in float64."""
    return to_unit_interval(levels.to(torch.uint8)).double()


def _why_outside(
    outside: torch.Tensor,
    wanted: torch.Tensor,
    clean: torch.Tensor,
    radius: torch.Tensor,
    norm: str,
) -> str:
    """What the error says of samples whose levels lie outside of the ball."""
    distance = _distance(wanted, clean, norm)
    strays = distance > radius + 1 / _LEVELS  # more than what rounding can be blamed for
    if bool(strays.any()):
        return (
            f"x_adv lies outside of eps for {int(strays.sum())} of {len(clean)} samples, one at "
            f"{float(distance[strays][0]):g} from x with eps={float(radius[strays][0]):g}: give "
            "what an attack with this threat model returned, and the x that it was given"
        )
    return (
        f"no 8-bit image lies within eps of x for {int(outside.sum())} of {len(clean)} samples: x "
        f"is not 8-bit itself and eps={float(radius[outside][0]):g} is too small; save floats"
    )


def _distance(images: torch.Tensor, clean: torch.Tensor, norm: str) -> torch.Tensor:
    rows = (images - clean).abs()
    if norm == "linf":
        return rows.amax(1)
    return rows.sum(1) if norm == "l1" else rows.square().sum(1).sqrt()
