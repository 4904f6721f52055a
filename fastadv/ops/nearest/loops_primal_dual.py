"""PDGD's and PDPGD's step as a compiled loop: a row goes from verdict to next point."""

import math
from typing import Any

import numpy as np
import torch

from fastadv.kernels import slots as columns
from fastadv.ops.loop_math import squares_of
from fastadv.ops.loops import Address, Count, Real, inner, loop, pointer
from fastadv.ops.loops_taken import LANES
from fastadv.ops.nearest.loops import KINDS, length_of
from fastadv.ops.nearest.primal_dual_reference import FAR, PrimalDualStep
from fastadv.ops.steps.loops_l1 import threshold_of

_FIRST, _SECOND, _GUARD = 0.9, 0.999, 1e-8  # as in the reference
_DUALS = 3
_GAP = 2 * LANES + 24  # numbers behind a row: padding, and another line of the cache
_ROWS = 6
_PULLS = KINDS | {"l2/3": 4}


@inner
def _share(log):
    """1 / (1 + exp(-log))."""
    small = math.exp(-abs(float(log)))
    return type(log)((small if log < 0 else 1.0) / (1.0 + small))


@inner
def _shrunk(size):
    """The larger minimum of (z - size)^2 / 2 + |z|^(2/3), else 0, as in the reference."""
    square = size * size
    rest = square * square * (1 / 256) - 8 / 729
    if rest < 0:
        return 0.0
    if size >= FAR:
        return size
    cube = square * (1 / 16) + math.sqrt(rest)
    root = math.exp(math.log(cube) * (1 / 3))
    root = (2.0 * root + cube / (root * root)) * (1 / 3)  # what the logarithm has rounded
    doubled = 2.0 * (root + (2 / 9) / root)
    width = math.sqrt(doubled)
    more = 2.0 * size / width - doubled
    whole = width + (math.sqrt(more) if more > 0 else 0.0)
    return whole * whole * whole * 0.125


@inner
def _pull(v, size, kind, level, unit, magnitude, room, sums):
    """The proximal step of a row in place; level: over unit."""
    zero, one, two = type(level)(0), type(level)(1), type(level)(2)
    least = unit * level
    if kind == 4:
        scale = math.sqrt(level) * math.sqrt(math.sqrt(level)) * float(unit)
        for j in range(size):
            value = type(level)(_shrunk(abs(float(v[j])) / scale) * scale)
            v[j] = -value if v[j] < zero else value
    elif kind == 3:
        least = unit * type(level)(math.sqrt(two * level))
        for j in range(size):
            v[j] = v[j] if abs(v[j]) >= least else zero
    elif kind == 2:
        for j in range(size):
            kept = abs(v[j]) - least
            kept = kept if kept > zero else zero
            v[j] = -kept if v[j] < zero else kept
    elif kind == 1:
        length = type(level)(math.sqrt(squares_of(v, 0, size)))
        factor = one - least / length if length > least else zero
        for j in range(size):
            v[j] = v[j] * factor
    else:
        for j in range(size):
            magnitude[j] = abs(v[j])
            room[j] = math.inf
        for j in range(size, size + LANES):
            magnitude[j] = room[j] = 0
        t = threshold_of(magnitude, room, size, least * 1.0, sums)
        most = type(level)(t) if t > 0 else zero
        for j in range(size):
            value = -most if v[j] < -most else v[j]
            v[j] = most if value > most else value


@inner
def _settle(x, at, start, metric, z, v, size, kind, level, unit, lo, hi, turns, change, rows):
    """z, the proximal step from `start` in the metric; v: scratch, rows: of three."""
    magnitude, room, sums = rows
    for j in range(size):
        z[j] = start[j]
    for _ in range(turns):
        for j in range(size):
            v[j] = z[j] - metric[j] * (z[j] - start[j])
        _pull(v, size, kind, level, unit, magnitude, room, sums)
        for j in range(size):
            value = x[at + j] + v[j]
            value = lo if value < lo else value
            value = (hi if value > hi else value) - x[at + j]
            v[j] = value - z[j]
            z[j] = value
        changed = type(lo)(math.sqrt(squares_of(v, 0, size)))
        if not changed > change * type(lo)(math.sqrt(squares_of(z, 0, size))):
            break


@loop
def _step(
    x_adv_at: Address,
    closest_at: Address,
    grad_at: Address,
    x_at: Address,
    mean_at: Address,
    square_at: Address,
    batch: Count,
    size: Count,
    loss_at: Address,
    prediction_at: Address,
    aims_at: Address,
    distance_at: Address,
    duals_at: Address,
    slots_at: Address,
    eps_at: Address,
    schedule_at: Address,
    steps: Count,
    lo: Real,
    hi: Real,
    unit: Real,
    most: Real,
    smoothing: Real,
    change: Real,
    turns: Count,
    kind: Count,
    pull_kind: Count,
    targeted: Count,
    stops: Count,
    memory: Address,
) -> None:
    x_adv, closest, x = pointer(x_adv_at, lo), pointer(closest_at, lo), pointer(x_at, lo)
    grad, mean, square = pointer(grad_at, lo), pointer(mean_at, lo), pointer(square_at, lo)
    loss, eps, distance = pointer(loss_at, lo), pointer(eps_at, lo), pointer(distance_at, lo)
    prediction, aims = pointer(prediction_at, np.int64), pointer(aims_at, np.int64)
    duals, schedule = pointer(duals_at, lo), pointer(schedule_at, lo)
    slots, sums = pointer(slots_at, np.int32), pointer(memory, np.float64)
    first, row = memory + 16 * LANES, 8 * (size + _GAP)
    away, metric, z = pointer(first, lo), pointer(first + row, lo), pointer(first + 2 * row, lo)
    v, magnitude = pointer(first + 3 * row, lo), pointer(first + 4 * row, np.float64)
    room = pointer(first + 5 * row, np.float64)
    zero, one = type(lo)(0), type(lo)(1)
    keep, guard = type(lo)(_SECOND), type(lo)(_GUARD)
    first_rest, second_rest = type(lo)(1.0 - _FIRST), type(lo)(1.0 - _SECOND)
    for b in range(batch):
        at, state, own = b * size, b * columns.WIDTH, b * _DUALS
        if slots[state + columns.ACTIVE] == 0:
            continue
        step, known = slots[state + columns.STEP], loss[b] == loss[b]
        hit = prediction[b] == aims[b]
        fooled = known and (hit if targeted != 0 else not hit)
        for j in range(size):
            away[j] = x_adv[at + j] - x[at + j]
        far = length_of(away, size, kind, v)
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
        if step + 1 >= steps or (stops != 0 and within):
            slots[state + columns.ACTIVE] = 0
            continue
        slots[state + columns.STEP] = step + 1
        gain = loss[b] if known else zero
        log, of_distance, of_loss = duals[own], duals[own + 1], duals[own + 2]
        inverse, pull = schedule[steps + step], zero
        weight = _share(-gain) * unit
        if turns == 0:
            weight = of_loss * weight
            pull = of_distance * (one / far) if far > zero else zero
        factor, widest = schedule[step] * unit, zero
        for j in range(size):
            g = grad[at + j]
            g = g if g - g == 0 else zero
            whole = away[j] * pull - weight * g
            average = mean[at + j] + first_rest * (whole - mean[at + j])
            squares = keep * square[at + j] + second_rest * (whole * whole)
            mean[at + j], square[at + j] = average, squares
            h = type(lo)(math.sqrt(squares)) * inverse + guard
            metric[j] = h
            value = x[at + j] + (away[j] - factor * (average / h))
            value = lo if value < lo else value
            away[j] = (hi if value > hi else value) - x[at + j]
        if turns > 0:
            for j in range(size):
                widest = metric[j] if metric[j] > widest else widest
            for j in range(size):
                metric[j] = metric[j] / widest
            level = of_distance / of_loss * (schedule[2 * steps + step] / widest)
            rows = magnitude, room, sums
            _settle(
                x, at, away, metric, z, v, size, pull_kind, level, unit, lo, hi, turns, change, rows
            )
        else:
            for j in range(size):
                z[j] = away[j]
        for j in range(size):
            value = x[at + j] + z[j]
            value = lo if value < lo else value
            value = hi if value > hi else value
            x_adv[at + j] = value if z[j] != zero else x[at + j]
        dual_size = schedule[3 * steps + step]
        if gain < zero:
            log = log + dual_size
        elif gain > zero:
            log = log - dual_size
        log = -most if log < -most else log
        log = most if log > most else log
        duals[own] = log
        duals[own + 1] = of_distance + smoothing * (_share(-log) - of_distance)
        duals[own + 2] = of_loss + smoothing * (_share(log) - of_loss)


def primal_dual_step_(*arguments) -> Any:
    """The op's arguments by position; NotImplemented where classes are int32, or eps or loss more
    exact than x_adv."""
    call = PrimalDualStep(*arguments)
    x_adv, dtype = call.x_adv, call.x_adv.dtype
    if call.prediction.dtype != torch.int64 or call.aims.dtype != torch.int64:
        return NotImplemented
    if dtype is torch.float32 and (call.eps.dtype, call.loss.dtype) != (dtype, dtype):
        return NotImplemented
    if x_adv.numel() == 0:
        return None
    size = x_adv.numel() // len(x_adv)
    eps, loss = call.eps.to(dtype), call.loss.to(dtype)
    memory = torch.empty(2 * LANES + _ROWS * (size + _GAP), dtype=torch.float64)
    _step[dtype](
        x_adv.data_ptr(),
        call.closest.data_ptr(),
        call.grad.data_ptr(),
        call.x.data_ptr(),
        call.mean.data_ptr(),
        call.square.data_ptr(),
        len(x_adv),
        size,
        loss.data_ptr(),
        call.prediction.data_ptr(),
        call.aims.data_ptr(),
        call.distance.data_ptr(),
        call.duals.data_ptr(),
        call.slots.data_ptr(),
        eps.data_ptr(),
        call.schedule.data_ptr(),
        call.schedule.shape[1],
        call.lo,
        call.hi,
        call.unit,
        call.most,
        call.smoothing,
        call.change,
        call.turns,
        KINDS[call.norm],
        _PULLS[call.pull],
        call.targeted,
        call.stop_early,
        memory.data_ptr(),
    )
