"""PDGD's and PDPGD's step in eager torch, which defines it."""

from typing import NamedTuple

import torch

from fastadv.ops import layout, rounding
from fastadv.ops.fab.hyperplane import finite_or_zero, row_norms
from fastadv.ops.fab.verdict import as_rows
from fastadv.ops.nearest.reference import lengths_of
from fastadv.ops.nearest.verdict import Verdict, judge
from fastadv.ops.steps.l1_projection import project_rows

_FIRST, _SECOND, _GUARD = 0.9, 0.999, 1e-8  # Adam's
FAR = 1e9  # of a size whose fourth power is finite; "l2/3" no more changes what is larger


class PrimalDualStep(NamedTuple):
    """The arguments of the op `fastadv::primal_dual_step_`, by position."""

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
    duals: torch.Tensor
    slots: torch.Tensor
    eps: torch.Tensor
    schedule: torch.Tensor
    lo: float
    hi: float
    unit: float
    most: float
    smoothing: float
    change: float
    turns: int
    norm: str
    pull: str
    targeted: bool
    stop_early: bool


def primal_dual_step(*arguments) -> None:
    """The op `fastadv::primal_dual_step_`."""
    step = PrimalDualStep(*arguments)
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
    _, of_distance, of_loss = step.duals.clone().unbind(1)
    turn = verdict.step.clamp(max=step.schedule.shape[1] - 1)
    rate, inverse, size, dual_size = (row[turn] for row in step.schedule)
    weight = _share(-verdict.loss) * step.unit
    if step.turns == 0:
        weight = of_loss * weight
    whole = -weight.unsqueeze(1) * finite_or_zero(as_rows(step.grad).to(dtype))
    if step.turns == 0:
        inverse_length = torch.where(length > 0, 1.0 / torch.where(length > 0, length, 1.0), 0.0)
        whole = away * (of_distance * inverse_length).unsqueeze(1) + whole
    mean, square = as_rows(step.mean), as_rows(step.square)
    new_mean = mean + (1.0 - _FIRST) * (whole - mean)
    new_square = _SECOND * square + (1.0 - _SECOND) * (whole * whole)
    metric = rounding.root(new_square) * inverse.unsqueeze(1) + _GUARD
    factor = (rate * step.unit).unsqueeze(1)
    moved = _kept(step, clean, away - factor * (new_mean / metric))
    if step.turns > 0:
        widest = metric.amax(1)
        level = (of_distance / of_loss) * (size / widest)
        metric = metric / widest.unsqueeze(1)
        moved = _settled(step, clean, moved, metric, level.unsqueeze(1))
    placed = (clean + moved).clamp(step.lo, step.hi)
    placed = torch.where(moved != 0, placed, clean).to(stored.dtype)  # the bits of x
    moving = verdict.moving.unsqueeze(1)
    mean.copy_(torch.where(moving, new_mean, mean))
    square.copy_(torch.where(moving, new_square, square))
    stored.copy_(torch.where(moving, placed, stored))
    step.duals.copy_(torch.where(moving, _next_duals(step, verdict, dual_size), step.duals))


def _kept(step: PrimalDualStep, clean: torch.Tensor, moved: torch.Tensor) -> torch.Tensor:
    """A difference to x, brought into bounds."""
    return (clean + moved).clamp(step.lo, step.hi) - clean


def _settled(
    step: PrimalDualStep,
    clean: torch.Tensor,
    start: torch.Tensor,
    metric: torch.Tensor,
    level: torch.Tensor,
) -> torch.Tensor:
    """The proximal step from `start` in the metric: each row ends its iterations by itself."""
    moved, goes_on = start, torch.ones_like(level, dtype=torch.bool)
    for _ in range(step.turns):
        pulled = proximal(moved - metric * (moved - start), level, step.pull, step.unit)
        pulled = torch.where(goes_on, _kept(step, clean, pulled), moved)
        change = row_norms(pulled - moved, "l2")
        moved = pulled
        goes_on = goes_on & (change > step.change * row_norms(moved, "l2")).unsqueeze(1)
    return moved


def proximal(rows: torch.Tensor, level: torch.Tensor, pull: str, unit: float) -> torch.Tensor:
    """argmin_z ||z - rows||^2 / 2 + level ||z||; of "l2/3" a minimum with level times the sum of
    |z|^(2/3), see `_shrunk`. Lengths are in units of `unit`; level: (B, 1)."""
    if pull == "l2/3":
        return _shrunk(rows, rounding.root(level) * rounding.root(rounding.root(level)) * unit)
    if pull == "l0":
        return torch.where(rows.abs() >= unit * rounding.root(2.0 * level), rows, 0.0)
    level = unit * level
    if pull == "l1":
        return (rows.abs() - level).clamp(min=0.0).copysign(rows)
    if pull == "l2":
        length = row_norms(rows, "l2").unsqueeze(1)
        longer = length > level
        return rows * torch.where(longer, 1.0 - level / torch.where(longer, length, 1.0), 0.0)
    still = torch.zeros_like(rows)
    return rows - project_rows(rows, still, still, level, -torch.inf, torch.inf)


def _shrunk(rows: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The larger minimum of (z - rows)^2 / 2 + scale^(4/3) |z|^(2/3) of each element where it has
    one beside 0, else 0, in closed form: with t = |rows| / scale it is
    scale * (s + sqrt(2 t / s - b))^3 / 8, s = sqrt(b), where b / 2 is the sum of the cubic roots of
    t^2 / 16 +- sqrt(t^4 / 256 - 8 / 729), whose product is 2 / 9."""
    size = rows.abs() / scale
    square = size * size
    rest = square * square * (1 / 256) - 8 / 729
    cube = square * (1 / 16) + rounding.root(rest.clamp(min=0.0))
    root = (cube.log() * (1 / 3)).exp()  # not `pow`, which differs between the places of a vector
    root = (2.0 * root + cube / (root * root)) * (1 / 3)  # what the logarithm has rounded
    doubled = 2.0 * (root + (2 / 9) / root)
    width = rounding.root(doubled)
    whole = width + rounding.root((2.0 * size / width - doubled).clamp(min=0.0))
    shrunk = torch.where(size < FAR, whole * whole * whole * 0.125 * scale, rows.abs())
    return torch.where(rest >= 0, shrunk.copysign(rows), 0.0)


def _next_duals(step: PrimalDualStep, verdict: Verdict, dual_size: torch.Tensor) -> torch.Tensor:
    """The logarithm of the weights' ratio and the weights after a step: (B, 3)."""
    log, of_distance, of_loss = step.duals.unbind(1)
    log = (log - dual_size * verdict.loss.sign()).clamp(-step.most, step.most)
    of_distance = of_distance + step.smoothing * (_share(-log) - of_distance)
    of_loss = of_loss + step.smoothing * (_share(log) - of_loss)
    return torch.stack([log, of_distance, of_loss], 1)


def _share(log: torch.Tensor) -> torch.Tensor:
    """1 / (1 + exp(-log)), which is also the slope of log(1 + exp(log))."""
    small = (-log.abs()).exp()
    return torch.where(log < 0, small, 1.0) / (1.0 + small)
