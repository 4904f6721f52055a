"""FAB's step and its candidates in eager torch, which defines them."""

import torch

from fastadv.ops import layout, reduction
from fastadv.ops.fab.hyperplane import finite_or_zero, projection, row_norms
from fastadv.ops.fab.verdict import FabStep, as_rows, fooled_rows, judge

DUAL = {"linf": "l1", "l2": "l2", "l1": "linf"}
GUARD = 1e-12  # the authors': a zero gradient makes a class far away, not 0 / 0
_LEAST_LENGTH = 1e-8  # the authors': keeps a1 / (a1 + a2) from 0 / 0


def fab_step(*arguments) -> None:
    """The op `fastadv::fab_step_`."""
    step = FabStep(*arguments)
    if step.x_adv.numel() == 0:
        return
    dtype = layout.compute_dtype(step.x_adv)
    stored = as_rows(step.x_adv)
    start, clean = stored.to(dtype), as_rows(step.x).to(dtype)
    away = start - clean
    verdict = judge(step, fooled_rows(step), row_norms(away, step.norm))
    closest = as_rows(step.closest)
    closest.copy_(torch.where(verdict.closer.unsqueeze(1), stored, closest))
    new = torch.where(verdict.pulled.unsqueeze(1), clean + step.beta * away, start)
    if step.grad is not None:
        moved = _moved(step, as_rows(step.grad).to(dtype), start, clean, away)
        new = torch.where(verdict.moving.unsqueeze(1), moved, new)
    stored.copy_(new)


def _moved(
    step: FabStep,
    grad: torch.Tensor,
    start: torch.Tensor,
    clean: torch.Tensor,
    away: torch.Tensor,
) -> torch.Tensor:
    """Every row between the projections of `start` and `clean`; away: start - clean."""
    lo, hi, norm = step.lo, step.hi, step.norm
    value = step.difference.to(start.dtype)
    w = torch.where(value.isnan().unsqueeze(1), 0.0, finite_or_zero(grad))
    value = torch.where(value.isnan(), 0.0, value)
    # w . x_adv - b is the difference itself: b would cancel most of it
    clean_value = value - reduction.tree_sum(w * away)
    clean_value = torch.where(clean_value.isnan(), 0.0, clean_value)
    d1 = projection(start, w, value, lo, hi, norm)
    d2 = projection(clean, w, clean_value, lo, hi, norm)
    a1, a2 = (row_norms(d, norm).clamp(min=_LEAST_LENGTH) for d in (d1, d2))
    alpha = (a1 / (a1 + a2)).clamp(0.0, step.alpha_max).unsqueeze(1)
    moved = (start + step.eta * d1) * (1.0 - alpha) + (clean + step.eta * d2) * alpha
    return moved.clamp(lo, hi)


def fab_nearest(
    grad_nearest, difference_nearest, ratio, grad, difference, labels, candidate, norm
) -> None:
    """The op `fastadv::fab_nearest_`, by position."""
    if grad.numel() == 0:
        return
    w = finite_or_zero(as_rows(grad).to(layout.compute_dtype(grad)))
    nearest = grad_nearest, difference_nearest, ratio
    take_over(nearest, grad, difference, labels != candidate, row_norms(w, DUAL[norm]))


def take_over(
    nearest: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    grad: torch.Tensor,
    difference: torch.Tensor,
    allowed: torch.Tensor,
    length: torch.Tensor,
) -> None:
    """Write what is nearer into (grad, difference, ratio); length: the dual norm of each grad."""
    grad_nearest, difference_nearest, ratio = nearest
    value = difference.to(ratio.dtype).abs() / (length + GUARD)
    nearer = allowed & (value < ratio)
    ratio.copy_(torch.where(nearer, value, ratio))
    difference_nearest.copy_(torch.where(nearer, difference, difference_nearest))
    kept = as_rows(grad_nearest)
    kept.copy_(torch.where(nearer.unsqueeze(1), as_rows(grad), kept))
