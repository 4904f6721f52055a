"""ALMA's step in eager torch, which defines it."""

from typing import NamedTuple

import torch

from fastadv.ops import layout, rounding
from fastadv.ops.fab.hyperplane import finite_or_zero, row_norms
from fastadv.ops.fab.verdict import as_rows
from fastadv.ops.nearest.verdict import Verdict, judge

_LEAST, _MOST = 1e-6, 1e12  # the authors' bounds of the multiplier
_GUARD = 1e-8  # RMSProp's
_DOUBLINGS, _HALVINGS = 60, 20  # of the step size that is looked for


class AlmaStep(NamedTuple):
    """The arguments of the op `fastadv::alma_step_`, by position."""

    x_adv: torch.Tensor
    closest: torch.Tensor
    grad: torch.Tensor
    x: torch.Tensor
    square: torch.Tensor
    momentum: torch.Tensor
    loss: torch.Tensor
    prediction: torch.Tensor
    aims: torch.Tensor
    distance: torch.Tensor
    memory: torch.Tensor
    slots: torch.Tensor
    eps: torch.Tensor
    lo: float
    hi: float
    unit: float
    reach: float
    fall: float
    rms: float
    inertia: float
    smoothing: float
    improvement: float
    increase: float
    steps: int
    check_steps: int
    targeted: bool
    stop_early: bool


def alma_step(*arguments) -> None:
    """The op `fastadv::alma_step_`."""
    step = AlmaStep(*arguments)
    if step.x_adv.numel() == 0:
        return
    dtype = layout.compute_dtype(step.x_adv)
    stored, clean = as_rows(step.x_adv), as_rows(step.x).to(dtype)
    away = stored.to(dtype) - clean
    length = row_norms(away, "l2")
    known_before = step.distance < torch.inf
    verdict = judge(
        step.slots,
        step.loss,
        step.prediction,
        step.aims,
        step.distance,
        step.eps,
        length,
        steps=step.steps,
        targeted=step.targeted,
        stop_early=step.stop_early,
        beyond=True,
    )
    closest = as_rows(step.closest)
    closest.copy_(torch.where(verdict.closer.unsqueeze(1), stored, closest))
    grad = finite_or_zero(as_rows(step.grad).to(dtype))
    slope, fallen = _multipliers(step, verdict, known_before)
    rate = step.memory[:, 4]
    if step.reach > 0:
        found = _found_rate(step, clean, grad, slope * step.unit)
        rate.copy_(torch.where(verdict.moving & (verdict.step == 0), found, rate))
    factor = rate * fallen * step.unit
    away_from_x = (length > 0) & (verdict.step > 0)
    inverse = torch.where(away_from_x, 1.0 / torch.where(away_from_x, length, 1.0), 0.0)
    whole = away * inverse.unsqueeze(1) - slope.unsqueeze(1) * grad
    square, momentum = as_rows(step.square), as_rows(step.momentum)
    new_square = step.rms * square + (1.0 - step.rms) * (whole * whole)
    new_momentum = step.inertia * momentum + whole / (rounding.root(new_square) + _GUARD)
    moved = (clean + (away - factor.unsqueeze(1) * new_momentum)).clamp(step.lo, step.hi)
    moving = verdict.moving.unsqueeze(1)
    square.copy_(torch.where(moving, new_square, square))
    momentum.copy_(torch.where(moving, new_momentum, momentum))
    stored.copy_(torch.where(moving, moved.to(stored.dtype), stored))


def _multipliers(
    step: AlmaStep, verdict: Verdict, known_before: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(what the gradient of the ratio is multiplied by, what share of the step size is left) of
    each row; writes what rows that move remember."""
    mu, rho, previous, found_at, _ = step.memory.unbind(1)
    ratio, now = -verdict.loss, verdict.step.to(mu.dtype)
    first = verdict.step == 0
    checks = first | ((verdict.step + 1) % step.check_steps == 0)
    stalls = checks & ~first & ~known_before & (ratio >= step.improvement * previous)
    rho = torch.where(stalls, rho * step.increase, rho)
    risen = mu + step.smoothing * (_slope(ratio, rho, mu) - mu)
    mu = torch.where(first, mu, risen.clamp(_LEAST, _MOST))
    found_at = torch.where(verdict.fooled & ~known_before, now, found_at)
    previous = torch.where(checks, ratio, previous)
    memory = torch.stack([mu, rho, previous, found_at], 1)
    kept = step.memory[:, :4]
    kept.copy_(torch.where(verdict.moving.unsqueeze(1), memory, kept))
    share = (now - found_at).clamp(min=0.0) / (step.steps - found_at)
    return _slope(ratio, rho, mu) * step.unit, (share * step.fall).exp()


def _found_rate(
    step: AlmaStep, clean: torch.Tensor, grad: torch.Tensor, slope: torch.Tensor
) -> torch.Tensor:
    """The step size of which a first step along the gradient has the length `reach`; fixed work."""
    direction = slope.unsqueeze(1) * grad

    def beyond(rate: torch.Tensor) -> torch.Tensor:
        moved = (clean + rate.unsqueeze(1) * direction).clamp(step.lo, step.hi)
        return row_norms(moved - clean, "l2") > step.reach

    under, over = torch.zeros_like(slope), torch.ones_like(slope)
    for _ in range(_DOUBLINGS):
        is_beyond = beyond(over)
        under, over = torch.where(is_beyond, under, over), torch.where(is_beyond, over, over * 2.0)
    for _ in range(_HALVINGS):
        middle = (under + over) * 0.5
        is_beyond = beyond(middle)
        under, over = torch.where(is_beyond, under, middle), torch.where(is_beyond, middle, over)
    return (under + over) * 0.5


def _slope(ratio: torch.Tensor, rho: torch.Tensor, mu: torch.Tensor) -> torch.Tensor:
    """P2'(ratio): mu (1 + 2 rho ratio) + (rho ratio)^2 / 2 from 0 on, mu / (1 - rho ratio)^2."""
    product = rho * ratio
    above = mu + 2.0 * mu * product + 0.5 * product * product
    below = 1.0 - product.clamp(max=0.0)
    return torch.where(ratio >= 0, above, mu / (below * below))
