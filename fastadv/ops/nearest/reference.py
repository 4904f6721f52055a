"""The steps of DDN and FMN in eager torch, which define them."""

from typing import NamedTuple

import torch

from fastadv.ops import layout
from fastadv.ops.fab.hyperplane import finite_or_zero, row_norms
from fastadv.ops.fab.reference import DUAL
from fastadv.ops.fab.verdict import as_rows
from fastadv.ops.nearest.verdict import Verdict, judge
from fastadv.ops.steps.l1_projection import project_rows
from fastadv.ops.steps.l2 import unit_scale


class RadiusStep(NamedTuple):
    """The arguments of the op `fastadv::radius_step_`, by position."""

    x_adv: torch.Tensor
    closest: torch.Tensor
    grad: torch.Tensor
    x: torch.Tensor
    loss: torch.Tensor
    prediction: torch.Tensor
    aims: torch.Tensor
    distance: torch.Tensor
    radius: torch.Tensor
    limit: torch.Tensor
    slots: torch.Tensor
    eps: torch.Tensor
    schedule: torch.Tensor
    overshoot: float
    lo: float
    hi: float
    norm: str
    rule: str
    minds_bounds: bool
    targeted: bool
    stop_early: bool


def radius_step(*arguments) -> None:
    """The op `fastadv::radius_step_`."""
    step = RadiusStep(*arguments)
    if step.x_adv.numel() == 0:
        return
    dtype = layout.compute_dtype(step.x_adv)
    stored, clean = as_rows(step.x_adv), as_rows(step.x).to(dtype)
    away = stored.to(dtype) - clean
    length = lengths_of(away, step.norm)
    verdict = judge(
        step.slots,
        step.loss,
        step.prediction,
        step.aims,
        step.distance,
        step.eps,
        length,
        steps=step.schedule.shape[1],
        targeted=step.targeted,
        stop_early=step.stop_early,
    )
    closest = as_rows(step.closest)
    closest.copy_(torch.where(verdict.closer.unsqueeze(1), stored, closest))
    moved = _moved(step, verdict, clean, away, length).to(stored.dtype)
    stored.copy_(torch.where(verdict.moving.unsqueeze(1), moved, stored))


def _moved(
    step: RadiusStep,
    verdict: Verdict,
    clean: torch.Tensor,
    away: torch.Tensor,
    length: torch.Tensor,
) -> torch.Tensor:
    """The next point of every row; writes the radii of those that move."""
    grad = finite_or_zero(as_rows(step.grad).to(clean.dtype))
    if step.minds_bounds:
        here = as_rows(step.x_adv).to(clean.dtype)
        blocked = ((grad > 0) & (here >= step.hi)) | ((grad < 0) & (here <= step.lo))
        grad = torch.where(blocked, 0.0, grad)
    scale = unit_scale(grad.abs().amax(1, keepdim=True))
    grad = grad * scale
    norm = row_norms(grad, "l2")
    size, gamma = (rows[verdict.step.clamp(max=len(rows) - 1)] for rows in step.schedule)
    outer = step.radius * (1.0 + gamma)
    inner = step.radius * (1.0 - gamma)
    if step.norm == "l0":
        outer = torch.maximum(step.radius + 1.0, outer.floor())
        inner = torch.minimum(torch.minimum(step.radius - 1.0, inner.floor()), step.distance)
        inner = inner.clamp(min=0.0)
    elif step.rule == "fmn":
        inner = torch.minimum(inner, step.distance)
        dual = row_norms(grad, DUAL[step.norm])
        gap = verdict.loss.abs() * scale.squeeze(1) / torch.where(dual > 0, dual, 1.0)
        gap = torch.where(dual > 0, gap * (1.0 + step.overshoot), torch.inf)
        outer = torch.where(step.distance < torch.inf, outer, length + gap)
    radius = torch.minimum(torch.where(verdict.fooled, inner, outer), step.limit)
    step.radius.copy_(torch.where(verdict.moving, radius, step.radius))
    factor = torch.where(norm > 0, size / torch.where(norm > 0, norm, 1.0), 0.0)
    u, radius = away + grad * factor.unsqueeze(1), radius.unsqueeze(1)
    if step.norm == "l0":
        moved = (clean + u).clamp(step.lo, step.hi)
        kept = _are_largest(u, radius)
        return torch.where(kept & (moved != clean), moved, clean)  # the bits of x where it is kept
    if step.norm == "l1":
        far = (step.lo, step.hi) if step.minds_bounds else (-torch.inf, torch.inf)
        return project_rows(clean, u, clean, radius, *far).clamp(step.lo, step.hi)
    if step.norm == "linf":
        u = torch.minimum(torch.maximum(u, -radius), radius)
    else:
        norm = row_norms(u, "l2").unsqueeze(1)
        u = u * torch.where(norm > 0, radius / torch.where(norm > 0, norm, 1.0), 1.0)
    return (clean + u).clamp(step.lo, step.hi)


def lengths_of(away: torch.Tensor, norm: str) -> torch.Tensor:
    """The norm of each row, in L0 how many entries are not 0."""
    return (away != 0).sum(1).to(away.dtype) if norm == "l0" else row_norms(away, norm)


def _are_largest(u: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
    """The entries of each row that reach its radius-th largest magnitude, ties included; one at
    least. radius: (B, 1)."""
    magnitude = u.abs()
    count = radius.clamp(1, u.shape[1]).long()
    least = magnitude.sort(1, descending=True).values.gather(1, count - 1)
    return magnitude >= least
