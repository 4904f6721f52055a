"""C&W's step in eager torch, which defines it."""

from typing import NamedTuple

import torch

from fastadv.kernels import slots as columns
from fastadv.ops import layout, rounding
from fastadv.ops.fab.hyperplane import finite_or_zero, row_norms
from fastadv.ops.fab.verdict import as_rows
from fastadv.ops.nearest.verdict import judge
from fastadv.ops.reduction import tree_sum

INSIDE = 1.0 - 1e-6  # the authors': what an element's place in the bounds is multiplied by
_FIRST, _SECOND, _GUARD = 0.9, 0.999, 1e-8  # Adam's
_STALLED, _DONE = 0.9999, 1e-4  # the authors': a round ends where its loss has not fallen, or has
_LARGEST = 1e10  # the authors': the last of ten rounds or more takes the least constant that worked
_MANY = 2**30


class CwStep(NamedTuple):
    """The arguments of the op `fastadv::cw_step_`, by position."""

    x_adv: torch.Tensor
    closest: torch.Tensor
    grad: torch.Tensor
    x: torch.Tensor
    shift: torch.Tensor
    mean: torch.Tensor
    square: torch.Tensor
    loss: torch.Tensor
    prediction: torch.Tensor
    aims: torch.Tensor
    distance: torch.Tensor
    search: torch.Tensor
    slots: torch.Tensor
    eps: torch.Tensor
    schedule: torch.Tensor
    lo: float
    hi: float
    unit: float
    kappa: float
    increase: float
    decrease: float
    most: float
    relative: float
    settled: int
    rounds: int
    points: int
    norm: str
    squashed: bool
    abort_early: bool
    targeted: bool
    stop_early: bool


class Search(NamedTuple):
    """The columns of a slot's memory, (B,) each."""

    constant: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    last: torch.Tensor
    level: torch.Tensor
    point: torch.Tensor
    number: torch.Tensor
    found: torch.Tensor
    pace: torch.Tensor


class _Course(NamedTuple):
    """What becomes of each row: whether its round ends here, or is `fresh`, ended by a loss that is
    low enough; the point's number for Adam; what the gradient is made with, and the next memory."""

    ends: torch.Tensor
    fresh: torch.Tensor
    turn: torch.Tensor
    constant: torch.Tensor
    level: torch.Tensor
    pace: torch.Tensor
    next: Search


def cw_step(*arguments) -> None:
    """The op `fastadv::cw_step_`."""
    step = CwStep(*arguments)
    if step.x_adv.numel() == 0:
        return
    dtype = layout.compute_dtype(step.x_adv)
    stored, clean = as_rows(step.x_adv), as_rows(step.x).to(dtype)
    away = stored.to(dtype) - clean
    length = row_norms(away, step.norm)
    relative = away * (1.0 / step.unit)
    loss = step.loss.to(dtype)
    reached, known = loss >= step.kappa, ~loss.isnan()
    fooled = reached & ((step.prediction == step.aims) == step.targeted)
    course = _course(step, relative, length, torch.where(known, loss, 0.0), fooled)
    over = course.ends & (course.next.number >= step.rounds)
    if step.norm == "linf":
        over = over | (course.ends & (course.next.constant >= step.most))
    over = over | (step.slots[:, columns.STEP] + 1 >= step.points)
    verdict = judge(
        step.slots,
        step.loss,
        step.prediction,
        step.aims,
        step.distance,
        step.eps,
        length,
        steps=torch.where(over, 0, _MANY),
        targeted=step.targeted,
        stop_early=step.stop_early,
        least=step.kappa,
    )
    moving = verdict.moving.unsqueeze(1)
    closest = as_rows(step.closest)
    closest.copy_(torch.where(verdict.closer.unsqueeze(1), stored, closest))
    memory = torch.stack(course.next, 1)
    step.search.copy_(torch.where(moving, memory, step.search))
    _move(step, course, clean, relative, moving)


def _course(
    step: CwStep,
    relative: torch.Tensor,
    length: torch.Tensor,
    loss: torch.Tensor,
    fooled: torch.Tensor,
) -> _Course:
    now = Search(*step.search.unbind(1))
    steps = step.schedule.shape[1]
    if step.norm == "l2":
        size = length * (1.0 / step.unit)
        value = size * size + now.constant * (step.kappa - loss)
        settled = now.point >= step.settled
        checks = settled & (now.point % -(-steps // 10) == 0)
        aborts = checks & (value > _STALLED * now.last)
        last, fresh = torch.where(checks, value, now.last), torch.zeros_like(checks)
        found = (now.found > 0) | (fooled & settled)
    else:
        excess = tree_sum((relative.abs() - now.level.unsqueeze(1)).clamp(min=0.0))
        value = excess + now.constant * (step.kappa - loss)
        aborts = value < _DONE * now.constant
        last, fresh = now.last, aborts & step.abort_early
        found = (now.found > 0) | (fooled & (length < step.distance))
    ends = (aborts & step.abort_early) | (now.point + 1 >= steps)
    low, high, level, pace = now.low, now.high, now.level, now.pace
    nearest = torch.where(fooled, torch.minimum(length, step.distance), step.distance)
    nearest = nearest * (1.0 / step.unit)
    if step.relative > 0:
        pace = torch.where(ends, (nearest * step.relative).clamp(max=1.0), pace)
    if step.norm == "l2":
        high = torch.where(ends & found, torch.minimum(high, now.constant), high)
        low = torch.where(ends & ~found, torch.maximum(low, now.constant), low)
        known = high < torch.inf
        constant = torch.where(known, (low + high) * 0.5, now.constant * step.increase)
        if step.rounds >= 10:
            final = now.number + 2 >= step.rounds
            constant = torch.where(final, high.clamp(max=_LARGEST), constant)
    else:
        lower = torch.minimum(level, nearest) * step.decrease
        level = torch.where(ends & found, lower, level)
        constant = torch.where(found, now.constant, now.constant * step.increase)
    constant = torch.where(ends, constant, now.constant)
    after = Search(
        constant,
        low,
        high,
        torch.where(ends, torch.inf, last),
        level,
        torch.where(ends, torch.where(fresh, 1.0, 0.0), now.point + 1).to(loss.dtype),
        now.number + ends.to(loss.dtype),
        torch.where(ends, False, found).to(loss.dtype),
        pace,
    )
    turn = torch.where(fresh, 0, now.point.long())
    return _Course(
        ends,
        fresh,
        turn,
        torch.where(fresh, constant, now.constant),
        torch.where(fresh, level, now.level),
        torch.where(fresh, pace, now.pace),
        after,
    )


def _move(
    step: CwStep,
    course: _Course,
    clean: torch.Tensor,
    relative: torch.Tensor,
    moving: torch.Tensor,
) -> None:
    """One of Adam's steps, or the start of a round."""
    shift, mean, square = as_rows(step.shift), as_rows(step.mean), as_rows(step.square)
    if step.norm == "l2":
        pull = 2.0 * relative
    else:
        level = course.level.unsqueeze(1)
        pull = torch.where(relative.abs() > level, relative.sign(), 0.0)
    grad = finite_or_zero(as_rows(step.grad).to(clean.dtype))
    slope = pull - (course.constant * step.unit).unsqueeze(1) * grad
    if step.squashed:
        slope = slope * place(clean, shift, step.lo, step.hi, step.unit)[1]
    fresh, ends = course.fresh.unsqueeze(1), course.ends.unsqueeze(1)
    new_mean = _FIRST * torch.where(fresh, 0.0, mean) + (1.0 - _FIRST) * slope
    new_square = _SECOND * torch.where(fresh, 0.0, square) + (1.0 - _SECOND) * (slope * slope)
    rate, inverse = (row[course.turn].unsqueeze(1) for row in step.schedule)
    rate = rate * course.pace.unsqueeze(1)
    new_shift = shift - rate * (new_mean / (rounding.root(new_square) * inverse + _GUARD))
    restarts = ends if step.norm == "l2" else torch.zeros_like(ends)
    new_shift = torch.where(restarts, 0.0, new_shift)
    forgets = ends & ~fresh
    if step.squashed:
        moved = place(clean, new_shift, step.lo, step.hi, step.unit)[0]
    else:
        moved = (clean + step.unit * new_shift).clamp(step.lo, step.hi)
        new_shift = (moved - clean) * (1.0 / step.unit)
    stored = as_rows(step.x_adv)
    stored.copy_(torch.where(moving, moved.to(stored.dtype), stored))
    shift.copy_(torch.where(moving, new_shift, shift))
    mean.copy_(torch.where(moving, torch.where(forgets, 0.0, new_mean), mean))
    square.copy_(torch.where(moving, torch.where(forgets, 0.0, new_square), square))


def place(
    clean: torch.Tensor, shift: torch.Tensor, lo: float, hi: float, unit: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """((tanh(w + shift) + 1) / 2 in the bounds, its slope by shift, over unit), where w is the
    variable of clean: by odds, which shift multiplies, so that nothing cancels near the bounds."""
    above, below = odds(clean, lo, hi, unit)
    factor = (-2.0 * shift.abs()).exp()
    above = torch.where(shift < 0, above * factor, above)
    below = torch.where(shift < 0, below, below * factor)
    whole = above + below
    share = above / whole
    return (lo + unit * share).clamp(lo, hi), 2.0 * share * (below / whole)


def odds(x: torch.Tensor, lo: float, hi: float, unit: float) -> tuple[torch.Tensor, torch.Tensor]:
    """How much of the bounds lies below x, and above it; a little of them at a bound."""
    share, rest = INSIDE / unit, (1.0 - INSIDE) / 2
    return (x - lo) * share + rest, (hi - x) * share + rest
