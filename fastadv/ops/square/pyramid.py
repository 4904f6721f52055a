"""A proposal of the Square Attack in L2 or L1 in eager torch: two windows become a pyramid."""

import torch

from fastadv.ops import layout, reduction, rounding
from fastadv.ops.square import start as square_start
from fastadv.ops.steps import l1_projection

_TINY = 1e-12  # the authors' guard against 0/0


def _windows(
    geometry: torch.Tensor, patterns: torch.Tensor, pattern_start: torch.Tensor, x: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(in the first window, in the second, the pyramid's values), (B, 1, H * W) each."""
    line = torch.arange(x.shape[2], device=x.device).view(-1, 1)
    column = torch.arange(x.shape[3], device=x.device)
    top, left, top2, left2, side, turned = geometry.long().view(-1, 6, 1, 1).unbind(1)
    i, j = line - top, column - left
    inside = (i >= 0) & (i < side) & (j >= 0) & (j < side)
    e = torch.where(turned != 0, j * side + i, i * side + j)
    e = torch.where(inside, e + pattern_start.long().view(-1, 1, 1), 0)
    pattern = torch.where(inside, patterns[e], 0.0)
    i, j = line - top2, column - left2
    other = (i >= 0) & (i < side) & (j >= 0) & (j < side)
    first, second, values = (t.flatten(1).unsqueeze(1) for t in (inside, other, pattern))
    return first, second, values


def propose_lp(
    x_best: torch.Tensor,
    x: torch.Tensor,
    sign: torch.Tensor,
    geometry: torch.Tensor,
    patterns: torch.Tensor,
    pattern_start: torch.Tensor,
    *,
    norm: str,
    eps: float | torch.Tensor,
    lo: float,
    hi: float,
) -> torch.Tensor:
    """The proposals (B, C, H, W) of queries with geometry (B, 6), patterns that begin at
    pattern_start (B,), and sign (B, C).

    delta = x_best - x loses its second window; the first becomes sign * pyramid + delta / ||delta||
    there, scaled in each channel to the norm of both windows and a channel's part of what ||delta||
    leaves of eps. L2: clamp(x + delta * eps / ||delta||); L1: projected onto ball and box.
    """
    dtype = layout.compute_dtype(x_best)
    batch, channels = x.shape[:2]
    best, clean = (t.to(dtype).contiguous().view(batch, channels, -1) for t in (x_best, x))
    radius = clean.new_full((batch,), eps) if not isinstance(eps, torch.Tensor) else eps
    radius = radius.to(dtype).view(-1, 1, 1)
    delta = best - clean
    first, second, pattern = _windows(geometry, patterns, pattern_start, x)

    def channel_sums(value: torch.Tensor) -> torch.Tensor:
        size = value * value if norm == "l2" else value.abs()
        return reduction.tree_sum(size.flatten(0, 1)).view(batch, channels)

    def norm_of(total: torch.Tensor) -> torch.Tensor:
        return (rounding.root(total) if norm == "l2" else total).unsqueeze(-1)

    image = norm_of(reduction.tree_sum(channel_sums(delta)).view(batch, 1))
    window = norm_of(channel_sums(torch.where(first, delta, 0.0)))
    both = norm_of(channel_sums(torch.where(first | second, delta, 0.0)))
    new = pattern.to(dtype) * sign.to(dtype).unsqueeze(-1) + delta * (1.0 / (window + _TINY))
    if norm == "l2":
        part = rounding.divided((radius * radius - image * image).clamp(min=0), channels)
        share = rounding.root(part + both * both)
    else:
        part = rounding.divided((radius - image).clamp(min=0), channels)
        share = (part + both) * channels
    scale = share / (norm_of(channel_sums(torch.where(first, new, 0.0))) + _TINY)
    delta = torch.where(first, new * scale, torch.where(second, 0.0, delta))
    if norm == "l2":
        length = norm_of(reduction.tree_sum(channel_sums(delta)).view(batch, 1)) + _TINY
        moved = (clean + delta * (radius / length)).clamp(lo, hi)
    else:
        rows = clean.flatten(1)
        radius = radius.view(-1, 1) * torch.full_like(radius.view(-1, 1), square_start.L1_SHARE)
        moved = l1_projection.project_rows(rows, delta.flatten(1), rows, radius, lo, hi)
    return moved.view(x.shape).to(x_best.dtype)
