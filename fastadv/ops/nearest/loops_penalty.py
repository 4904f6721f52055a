"""C&W's step as a compiled loop: a row goes from verdict to next point."""

import math
from typing import Any

import numpy as np
import torch

from fastadv.kernels import slots as columns
from fastadv.ops.loop_math import exp, squares_of, total_of
from fastadv.ops.loops import Address, Count, Real, inner, loop, pointer
from fastadv.ops.nearest.penalty_reference import CwStep

_COLUMNS = 9  # as in `penalty_reference.Search`, whose numbers these are too
_INSIDE = 1.0 - 1e-6
_FIRST, _SECOND, _GUARD = 0.9, 0.999, 1e-8
_STALLED, _DONE, _LARGEST = 0.9999, 1e-4, 1e10


@inner
def _odds_at(x, shift, lo, hi, share, rest):
    """How much of the bounds lies below the point of a shift, and above it: two times a number."""
    zero = type(lo)(0)
    factor = exp(shift + shift if shift < zero else -(shift + shift))
    above, below = (x - lo) * share + rest, (hi - x) * share + rest
    above = above * factor if shift < zero else above
    return above, below if shift < zero else below * factor


@loop
def _step(
    x_adv_at: Address,
    closest_at: Address,
    grad_at: Address,
    x_at: Address,
    shift_at: Address,
    mean_at: Address,
    square_at: Address,
    batch: Count,
    size: Count,
    loss_at: Address,
    prediction_at: Address,
    aims_at: Address,
    distance_at: Address,
    search_at: Address,
    slots_at: Address,
    eps_at: Address,
    schedule_at: Address,
    steps: Count,
    lo: Real,
    hi: Real,
    unit: Real,
    inverse: Real,
    kappa: Real,
    increase: Real,
    decrease: Real,
    most: Real,
    relative: Real,
    settled: Count,
    rounds: Count,
    points: Count,
    in_linf: Count,
    squashed: Count,
    abort_early: Count,
    targeted: Count,
    stops: Count,
    scratch_at: Address,
) -> None:
    x_adv, closest, x = pointer(x_adv_at, lo), pointer(closest_at, lo), pointer(x_at, lo)
    grad, shift, mean = pointer(grad_at, lo), pointer(shift_at, lo), pointer(mean_at, lo)
    square, loss, eps = pointer(square_at, lo), pointer(loss_at, lo), pointer(eps_at, lo)
    distance, search, schedule = (
        pointer(distance_at, lo),
        pointer(search_at, lo),
        pointer(schedule_at, lo),
    )
    prediction, aims = pointer(prediction_at, np.int64), pointer(aims_at, np.int64)
    slots, away = pointer(slots_at, np.int32), pointer(scratch_at, lo)
    over_level = pointer(scratch_at + 8 * size, lo)
    zero, one, two, infinite = type(lo)(0), type(lo)(1), type(lo)(2), type(lo)(math.inf)
    share, rest = type(lo)(_INSIDE) / unit, type(lo)((1.0 - _INSIDE) / 2)
    first, second, guard = type(lo)(_FIRST), type(lo)(_SECOND), type(lo)(_GUARD)
    first_rest, second_rest = type(lo)(1.0 - _FIRST), type(lo)(1.0 - _SECOND)
    for b in range(batch):
        at, state, own = b * size, b * columns.WIDTH, b * _COLUMNS
        if slots[state + columns.ACTIVE] == 0:
            continue
        step, known = slots[state + columns.STEP], loss[b] == loss[b]
        hit = prediction[b] == aims[b]
        fooled = (hit if targeted != 0 else not hit) and loss[b] >= kappa
        for j in range(size):
            away[j] = x_adv[at + j] - x[at + j]
        constant, level, last = search[own], search[own + 4], search[own + 3]
        point, pace = int(search[own + 5]), search[own + 8]
        found = search[own + 7] > zero
        missing = constant * (kappa - (loss[b] if known else zero))
        fresh = False
        if in_linf != 0:
            far = zero
            for j in range(size):
                far = abs(away[j]) if abs(away[j]) > far else far
                over = abs(away[j] * inverse) - level
                over_level[j] = over if over > zero else zero
            value = total_of(over_level, 0, size) + missing
            aborts = abort_early != 0 and value < type(lo)(_DONE) * constant
            fresh = aborts
            found = found or (fooled and far < distance[b])
        else:
            far = type(lo)(math.sqrt(squares_of(away, 0, size)))
            value = far * inverse * (far * inverse) + missing
            checks = point >= settled and point % ((steps + 9) // 10) == 0
            aborts = abort_early != 0 and checks and value > type(lo)(_STALLED) * last
            last = value if checks else last
            found = found or (fooled and point >= settled)
        within = fooled and far <= eps[b]
        if fooled and far < distance[b]:
            distance[b] = far
            slots[state + columns.NEAREST_STEP] = step
            for j in range(at, at + size):
                closest[j] = x_adv[j]
        if within and slots[state + columns.SUCCESS_STEP] < 0:
            slots[state + columns.SUCCESS_STEP] = step
        if not known:
            slots[state + columns.FAULT] |= columns.FAULT_NAN_LOGITS
        ends = aborts or point + 1 >= steps
        low, high, number = search[own + 1], search[own + 2], search[own + 6]
        used, used_level, used_pace = constant, level, pace
        if ends:
            number += one
            if relative > zero:
                pace = distance[b] * inverse * relative
                pace = pace if pace < one else one
            if in_linf != 0:
                if found:
                    nearest = distance[b] * inverse
                    level = (nearest if nearest < level else level) * decrease
                else:
                    constant = constant * increase
            else:
                if found:
                    high = constant if constant < high else high
                else:
                    low = constant if constant > low else low
                constant = (low + high) / two if high < infinite else constant * increase
                if rounds >= 10 and number + one >= rounds:
                    constant = high if high < type(lo)(_LARGEST) else type(lo)(_LARGEST)
        over = ends and (number >= rounds or (in_linf != 0 and constant >= most))
        if over or step + 1 >= points or (stops != 0 and within):
            slots[state + columns.ACTIVE] = 0
            continue
        slots[state + columns.STEP] = step + 1
        search[own], search[own + 1], search[own + 2] = constant, low, high
        search[own + 3], search[own + 4] = infinite if ends else last, level
        search[own + 6], search[own + 7] = number, zero if ends or not found else one
        search[own + 5] = (one if fresh else zero) if ends else type(lo)(point + 1)
        search[own + 8] = pace
        if fresh:
            used, used_level, used_pace, point = constant, level, pace, 0
        used = used * unit
        rate, scale = schedule[point] * used_pace, schedule[steps + point]
        if fresh:
            for j in range(at, at + size):
                mean[j] = square[j] = zero
        for j in range(size):
            g = grad[at + j]
            g = g if g - g == 0 else zero
            d = away[j] * inverse
            if in_linf != 0:
                pull = zero if abs(d) <= used_level else (one if d > zero else -one)
            else:
                pull = two * d
            slope = pull - used * g
            if squashed != 0:
                above, below = _odds_at(x[at + j], shift[at + j], lo, hi, share, rest)
                whole = above + below
                slope = slope * (two * (above / whole) * (below / whole))
            average = first * mean[at + j] + first_rest * slope
            squares = second * square[at + j] + second_rest * (slope * slope)
            mean[at + j], square[at + j] = average, squares
            shift[at + j] -= rate * (average / (type(lo)(math.sqrt(squares)) * scale + guard))
        if ends and in_linf == 0:
            for j in range(at, at + size):
                shift[j] = zero
        if ends and not fresh:
            for j in range(at, at + size):
                mean[j] = square[j] = zero
        for j in range(size):
            if squashed != 0:
                above, below = _odds_at(x[at + j], shift[at + j], lo, hi, share, rest)
                value = lo + unit * (above / (above + below))
            else:
                value = x[at + j] + unit * shift[at + j]
            value = lo if value < lo else value
            value = hi if value > hi else value
            x_adv[at + j] = value
            if squashed == 0:
                shift[at + j] = (value - x[at + j]) * inverse


def cw_step_(*arguments) -> Any:
    """The op's arguments by position; NotImplemented where classes are int32, or eps or loss more
    exact than x_adv."""
    call = CwStep(*arguments)
    x_adv, dtype = call.x_adv, call.x_adv.dtype
    if call.prediction.dtype != torch.int64 or call.aims.dtype != torch.int64:
        return NotImplemented
    if dtype is torch.float32 and (call.eps.dtype, call.loss.dtype) != (dtype, dtype):
        return NotImplemented
    if x_adv.numel() == 0:
        return None
    size = x_adv.numel() // len(x_adv)
    eps, loss = call.eps.to(dtype), call.loss.to(dtype)
    scratch = torch.empty(2 * size, dtype=torch.float64)
    _step[dtype](
        x_adv.data_ptr(),
        call.closest.data_ptr(),
        call.grad.data_ptr(),
        call.x.data_ptr(),
        call.shift.data_ptr(),
        call.mean.data_ptr(),
        call.square.data_ptr(),
        len(x_adv),
        size,
        loss.data_ptr(),
        call.prediction.data_ptr(),
        call.aims.data_ptr(),
        call.distance.data_ptr(),
        call.search.data_ptr(),
        call.slots.data_ptr(),
        eps.data_ptr(),
        call.schedule.data_ptr(),
        call.schedule.shape[1],
        call.lo,
        call.hi,
        call.unit,
        1.0 / call.unit,
        call.kappa,
        call.increase,
        call.decrease,
        call.most,
        call.relative,
        call.settled,
        call.rounds,
        call.points,
        call.norm == "linf",
        call.squashed,
        call.abort_early,
        call.targeted,
        call.stop_early,
        scratch.data_ptr(),
    )
