"""Sigma-zero's step in eager torch, which defines it."""

from typing import NamedTuple

import torch

from fastadv.ops import layout, rounding
from fastadv.ops.fab.hyperplane import finite_or_zero
from fastadv.ops.fab.verdict import as_rows
from fastadv.ops.nearest.verdict import judge
from fastadv.ops.reduction import tree_sum

FIRST, SECOND = 0.9, 0.999  # Adam's means of gradients and of their squares
GUARD = 1e-8
LEAST = 1e-12  # of the largest slope, below which all slopes count as they are


class SigmaZeroStep(NamedTuple):
    """The arguments of the op `fastadv::sigma_zero_step_`, by position."""

    x_adv: torch.Tensor
    closest: torch.Tensor
    grad: torch.Tensor
    x: torch.Tensor
    mean: torch.Tensor
    square: torch.Tensor
    loss: torch.Tensor
    prediction: torch.Tensor
    aims: torch.Tensor
    distance: torch.Tensor
    threshold: torch.Tensor
    slots: torch.Tensor
    eps: torch.Tensor
    schedule: torch.Tensor
    lo: float
    hi: float
    unit: float
    smoothing: float
    targeted: bool
    stop_early: bool


def sigma_zero_step(*arguments) -> None:
    """The op `fastadv::sigma_zero_step_`."""
    step = SigmaZeroStep(*arguments)
    if step.x_adv.numel() == 0:
        return
    dtype = layout.compute_dtype(step.x_adv)
    stored, given = as_rows(step.x_adv), as_rows(step.x)
    clean = given.to(dtype)
    away = (stored.to(dtype) - clean) * (1.0 / step.unit)
    steps = step.schedule.shape[1]
    verdict = judge(
        step.slots,
        step.loss,
        step.prediction,
        step.aims,
        step.distance,
        step.eps,
        tree_sum((away != 0).to(dtype)),
        steps=steps,
        targeted=step.targeted,
        stop_early=step.stop_early,
    )
    closest = as_rows(step.closest)
    closest.copy_(torch.where(verdict.closer.unsqueeze(1), stored, closest))
    rate, spread, change = step.schedule[:, verdict.step.long().clamp(max=steps - 1)]
    slope = _slope(step, away, verdict.loss <= 0)
    mean, square = as_rows(step.mean), as_rows(step.square)
    new_mean = FIRST * mean + (1.0 - FIRST) * slope
    new_square = SECOND * square + (1.0 - SECOND) * (slope * slope)
    scale = rounding.root(new_square) * spread.unsqueeze(1) + GUARD
    u = away - rate.unsqueeze(1) * (new_mean / scale)
    moved = (clean + step.unit * u).clamp(step.lo, step.hi)
    threshold = step.threshold
    new_threshold = (threshold + torch.where(verdict.fooled, change, -change)).clamp(0.0, 1.0)
    small = (moved - clean).abs() * (1.0 / step.unit) < new_threshold.unsqueeze(1)
    moved = torch.where(small | (moved == clean), given, moved.to(given.dtype))
    moving = verdict.moving.unsqueeze(1)
    threshold.copy_(torch.where(verdict.moving, new_threshold, threshold))
    mean.copy_(torch.where(moving, new_mean, mean))
    square.copy_(torch.where(moving, new_square, square))
    stored.copy_(torch.where(moving, moved, stored))


def _slope(step: SigmaZeroStep, away: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """The gradient of max(margin, 0) + mean(d^2 / (d^2 + smoothing)), over its largest entry;
    away: d in units; right: (B,) whose margin is not below 0."""
    grad = finite_or_zero(as_rows(step.grad).to(away.dtype))
    base = away * away + step.smoothing
    count = (2.0 * step.smoothing / away.shape[1]) * away / (base * base)
    slope = count - torch.where(right.unsqueeze(1), grad * step.unit, 0.0)
    return slope / slope.abs().amax(1).clamp(min=LEAST).unsqueeze(1)
