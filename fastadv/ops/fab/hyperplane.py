"""The projection onto a hyperplane inside a box in eager torch: it defines FAB's projections."""

import torch

from fastadv.ops import layout, reduction, rounding

_LEAST_WEIGHT = 1e-8  # the authors': in L2 and L1, coordinates up to it do not move
_TOP = 1e30  # the largest level: no bound is farther; finite, because 0 * inf is not 0
# every turn cuts residual * slope to a quarter or less (Newton on a concave function): 40 turns
# reach fp32's resolution, whatever the weights; 4 to 8 are usual
_TURNS = 40


def finite_or_zero(values: torch.Tensor) -> torch.Tensor:
    return torch.where(values.isfinite(), values, 0.0)


def row_norms(rows: torch.Tensor, norm: str) -> torch.Tensor:
    """The norm of each row of (B, D)."""
    if norm == "linf":
        return rows.abs().amax(1)
    if norm == "l1":
        return reduction.tree_sum(rows.abs())
    return rounding.root(reduction.tree_sum(rows * rows))


def projection(
    points: torch.Tensor, w: torch.Tensor, offset: torch.Tensor, lo: float, hi: float, norm: str
) -> torch.Tensor:
    """The smallest d with w . d = -offset as far as lo <= points + d <= hi allows; (B, D) rows.

    w must be finite; offset is w . points - b. A point outside of the box counts as at its bound.
    """
    weight = w.abs()
    still = weight <= (0.0 if norm == "linf" else _LEAST_WEIGHT)
    weight = weight.masked_fill(still, 0.0)
    upwards = torch.where(offset.unsqueeze(1) < 0, -w, w) < 0
    room = torch.where(upwards, hi, lo) - points.clamp(lo, hi)
    room = room.masked_fill(still, 0.0)
    magnitude, need = room.abs(), offset.abs().unsqueeze(1)
    if norm == "l1":
        size = _filled(weight, magnitude, need)
    else:
        gain = weight if norm == "linf" else weight * weight
        level = _level(weight, gain, magnitude, need)
        size = torch.minimum(level if norm == "linf" else level * weight, magnitude)
    return torch.where(room < 0, -size, size)


def _level(
    weight: torch.Tensor, gain: torch.Tensor, room: torch.Tensor, need: torch.Tensor
) -> torch.Tensor:
    """(B, 1): sum(weight * min(reach, room)) = need, where reach is level (gain = weight) or
    level * weight (gain = weight^2); the largest level where the box ends before.

    The sum is concave and piecewise linear in the level: Newton's steps from the left only rise.
    """
    closed_gain = torch.where(weight > 0, weight * room, 0.0)
    level = torch.zeros_like(need)
    for _ in range(_TURNS):
        opened = room > (level if gain is weight else level * weight)
        slope = reduction.tree_sum(torch.where(opened, gain, 0.0)).unsqueeze(1)
        work = reduction.tree_sum(torch.where(opened, 0.0, closed_gain)).unsqueeze(1)
        risen = torch.where(slope > 0, (need - work) / slope, _TOP).clamp(max=_TOP)
        level = torch.where(risen > level, risen, level)
    return level


def _filled(weight: torch.Tensor, room: torch.Tensor, need: torch.Tensor) -> torch.Tensor:
    """Coordinates filled by descending weight, ties by position, until they add up to `need`.

    The weight of the last one is found by bisection on its bits, which grow as it does.
    """
    bits = weight.view(torch.int32 if weight.dtype == torch.float32 else torch.int64)
    gain = torch.where(weight > 0, weight * room, 0.0)

    def reached(least: torch.Tensor) -> torch.Tensor:
        return reduction.tree_sum(torch.where(bits >= least, gain, 0.0)).unsqueeze(1)

    low = (reached(torch.ones_like(bits[:, :1])) >= need).to(bits.dtype)
    high = torch.where(low > 0, bits.amax(1, keepdim=True) + 1, low + 1)
    for _ in range(8 * weight.element_size() - 1):
        middle = low + (high - low) // 2
        enough = reached(middle) >= need
        inside = middle > low
        low = torch.where(inside & enough, middle, low)
        high = torch.where(inside & ~enough, middle, high)
    rest = (need - reached(low + 1)).clamp(min=0)
    tied = (bits == low) & (low > 0)
    # no more than the rest of each: where the box is unbounded, inf - inf would follow
    share = torch.where(tied, torch.minimum(gain, rest), 0.0)
    before = share.cumsum(1) - share
    partial = torch.minimum(((rest - before) / weight).clamp(min=0), room)
    return torch.where(bits > low, room, torch.where(tied, partial, 0.0))


def project_reference(
    points: torch.Tensor, w: torch.Tensor, b: torch.Tensor, lo: float, hi: float, norm: str
) -> torch.Tensor:
    """The op `fastadv::hyperplane_projection`, by position."""
    if points.numel() == 0:
        return torch.empty_like(points)
    dtype = layout.compute_dtype(points)
    start, normal = points.to(dtype), finite_or_zero(w.to(dtype))
    offset = reduction.tree_sum(normal * start) - b.to(dtype)
    return projection(start, normal, offset, lo, hi, norm).to(points.dtype)
