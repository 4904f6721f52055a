"""Radii and bounds of elements: what a threat model holds that is not alike in all of a sample."""

import math
from typing import ClassVar, Protocol, cast

import torch

from fastadv.ops import doubles, layout

Value = float | torch.Tensor
Bounds = tuple[Value, Value] | None


class Radii(Protocol):
    """What is asked of a threat model."""

    norm: ClassVar[str]

    @property
    def eps(self) -> Value: ...
    @property
    def bounds(self) -> Bounds: ...


def of_elements(value: object) -> bool:
    """Whether a radius or a bound has a value for each element: a tensor with a batch axis and
    others."""
    return isinstance(value, torch.Tensor) and value.ndim > 1


def has_elements(threat: Radii) -> bool:
    """Whether a threat model has radii or bounds of elements."""
    return of_elements(threat.eps) or any(map(of_elements, threat.bounds or ()))


def has_radius(threat: Radii) -> bool:
    """Whether a threat model limits how far samples may move; `fastadv.L2()` does not."""
    return isinstance(threat.eps, torch.Tensor) or threat.eps != math.inf


def check_radius(threat: Radii, needed_by: str) -> None:
    """Raises ValueError for a threat model without a radius. needed_by: what is to use it."""
    if not has_radius(threat):
        raise ValueError(
            f"{needed_by} needs a radius, which {threat!r} has not: give one in input units, such "
            "as fastadv.Linf(8 / 255). fastadv.fab, ddn, fmn and others look for the nearest "
            "adversarial example and need none"
        )


def radius_of(threat: Radii) -> Value:
    """The radius that step sizes are shares of: 1.0 where lengths are in units of eps."""
    return 1.0 if of_elements(threat.eps) and threat.norm != "linf" else threat.eps


def common_bounds(threat: Radii) -> tuple[float, float] | None:
    """(lo, hi) of all elements; None without bounds, and where elements have their own."""
    bounds = threat.bounds
    if bounds is None or any(map(of_elements, bounds)):
        return None
    return cast("tuple[float, float]", bounds)


def check_sides(name: str, bounds: Bounds) -> None:
    """Raises ValueError unless bounds are None or (lo, hi) with lo < hi; of tensors, with a batch
    axis, lo <= hi: an element whose bounds meet stays where it is."""
    wrong = f"{name} bounds must be (lo, hi) with lo < hi, or None; got "
    if bounds is None:
        return
    if len(bounds) != 2:
        raise ValueError(f"{wrong}{bounds}")
    for side in bounds:
        if isinstance(side, torch.Tensor) and side.ndim == 1:
            raise ValueError(
                f"{name} bounds of elements carry the batch axis, (1, {len(side)}); got "
                f"{tuple(side.shape)}: give lo[None] and hi[None]"
            )
    lo, hi = bounds
    if not any(map(of_elements, bounds)):
        if not lo < hi:
            raise ValueError(f"{wrong}{bounds}")
        return
    lo, hi = torch.as_tensor(lo), torch.as_tensor(hi)
    try:
        crossed = ~(lo <= hi)  # and NaN
    except RuntimeError as error:
        shapes = tuple(lo.shape), tuple(hi.shape)
        raise ValueError(f"{name} bounds must broadcast to each other; got {shapes}") from error
    if bool(crossed.any()) or not bool((lo < hi).any()):
        raise ValueError(f"{name} bounds must have lo <= hi in every element; got {bounds}")


def check_elements_fit(threat: Radii, x: torch.Tensor) -> None:
    """Raises ValueError where a radius is larger than the box: eps was meant in other units."""
    eps, bounds = threat.eps, threat.bounds
    if bounds is None or x.numel() == 0:
        return
    lo, hi = (doubles.doubled(torch.as_tensor(side)).cpu() for side in bounds)
    radius = doubles.doubled(torch.as_tensor(eps)).cpu()
    width = hi - lo
    if threat.norm == "linf":
        radius = radius if of_elements(eps) else radius.max()
        if bool(((radius > width) & (width > 0)).any()):
            raise ValueError(
                "eps is larger than the range of bounds in some elements; give it in input units"
            )
        return
    unit = radius if of_elements(eps) else torch.ones(())
    scaled = torch.where(unit > 0, width / unit, 0.0)
    rows = scaled.expand(len(scaled) if scaled.ndim else 1, *x.shape[1:]).flatten(1)
    widest = float(rows.norm(p=2 if threat.norm == "l2" else 1, dim=1).min())
    largest = 1.0 if of_elements(eps) else float(radius.max())
    if largest > widest * (1 + 1e-6):  # the whole box, rounded up
        raise ValueError(
            f"eps is larger than the box, whose diameter is {widest:g} in {threat.norm.upper()}"
            f"{' in units of eps' if of_elements(eps) else ''}; give eps in input units"
        )


def in_units(difference: torch.Tensor, eps: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """difference / eps, (n, ...), for a difference from x in float64; 0 / 0 is 0."""
    unit = doubles.doubled(eps, beside=x)
    return torch.where(difference == 0, difference, difference / unit)


def _element_slack(eps: Value, bounds: Bounds, x: torch.Tensor, roundoff: float) -> torch.Tensor:
    """What one rounding of each element may add, (n, ...), in float64: of the larger of its bounds,
    or of its own value and radius where it has none."""
    value = doubles.doubled(x).abs()
    sides = bounds or (-torch.inf, torch.inf)
    lo, hi = (doubles.doubled(torch.as_tensor(side), beside=x).abs() for side in sides)
    if of_elements(eps):
        value = value + doubles.doubled(torch.as_tensor(eps), beside=x)
    largest = torch.maximum(lo, hi)
    return roundoff * torch.where(largest.isinf(), value, largest)


def contains_elements(
    x_adv: torch.Tensor,
    x: torch.Tensor,
    *,
    norm: str,
    eps: Value,
    bounds: Bounds,
    roundoff: float,
) -> torch.Tensor:
    """`fastadv.contains` where elements have radii or bounds of their own."""
    if x.numel() == 0:
        return torch.ones(len(x), dtype=torch.bool, device=x.device)
    outside = x_adv.isnan()
    for side, beyond in zip(bounds or (), (torch.lt, torch.gt), strict=False):
        bound = torch.as_tensor(side, dtype=layout.compute_dtype(x), device=x.device)
        outside |= beyond(x_adv, bound)
    moved = doubles.doubled(x_adv) - doubles.doubled(x)
    slack, radius = _element_slack(eps, bounds, x, roundoff), eps
    if isinstance(eps, torch.Tensor) and of_elements(eps):
        moved, slack, radius = in_units(moved, eps, x), in_units(slack, eps, x), 1.0
    elif isinstance(eps, torch.Tensor):
        radius = doubles.doubled(eps, beside=x)
    moved, slack = (t.abs().reshape(len(x), -1) for t in (moved, slack))
    slack = slack.nan_to_num(posinf=0.0)  # of a radius of 0, where nothing may move
    if norm == "linf":
        rows = radius.reshape(-1, 1) if isinstance(radius, torch.Tensor) else radius
        beyond_ball = (moved > rows * (1 + 1e-6) + slack).any(1)
    else:
        lengths, slack = (t.norm(p=2 if norm == "l2" else 1, dim=1) for t in (moved, slack))
        beyond_ball = lengths > radius * (1 + 1e-6) + slack
    return ~(outside.reshape(len(x), -1).any(1) | doubles.returned(beyond_ball, x))
