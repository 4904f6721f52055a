"""The steps of DDN and FMN as a compiled loop: a row goes from verdict to next point."""

import math
from typing import Any

import numpy as np
import torch

from fastadv.kernels import slots as columns
from fastadv.ops.loop_math import largest_of, squares_of, total_of
from fastadv.ops.loops import Address, Count, Real, inner, loop, pointer
from fastadv.ops.loops_taken import LANES, last_taken
from fastadv.ops.steps.loops_l1 import threshold_of

KINDS = {"linf": 0, "l2": 1, "l1": 2, "l0": 3}
_L0 = 3
_GAP = 2 * LANES + 24  # numbers behind a row: padding, and another line of the cache
_ROWS = 5
_LEAST, _MOST = 1e-60, 1e60  # squares between add up without underflow or overflow


@inner
def length_of(row, size, kind, scratch):
    """The norm of `size` numbers; scratch: as many."""
    if kind == 1:
        return type(row[0])(math.sqrt(squares_of(row, 0, size)))
    if kind == _L0:
        count = 0
        for j in range(size):
            count += row[j] != 0
        return type(row[0])(count)
    for j in range(size):
        scratch[j] = abs(row[j])
    if kind == 2:
        return total_of(scratch, 0, size)
    return largest_of(scratch, 0, size)


@inner
def _whole(value):
    """The whole part of a number that is not negative; of no loop's own floor, which is a call."""
    return type(value)(int(value)) if value < 1e9 else value


@inner
def _slope(grad, x_adv, at, size, minds_bounds, lo, hi, slope):
    """(power of two, squares): slope = grad times that power, so that its squares add up without
    underflow or overflow; 0 where it is not finite, and, if asked, where it points out of bounds.
    """
    zero, power = type(lo)(0), 1.0
    for j in range(size):
        value = grad[at + j]
        slope[j] = value if value - value == 0 else zero
    if minds_bounds != 0:
        for j in range(size):
            value, place = slope[j], x_adv[at + j]
            blocked = ((value > zero) & (place >= hi)) | ((value < zero) & (place <= lo))
            slope[j] = zero if blocked else value
    square = squares_of(slope, 0, size)
    if _LEAST < square < _MOST:
        return power, square
    largest = 0.0
    for j in range(size):
        largest = max(largest, abs(float(slope[j])))
    if largest > 0.0:
        while largest * power < 1.0 / 65536.0:
            power *= 65536.0
        while largest * power > 65536.0:
            power /= 65536.0
    for j in range(size):
        slope[j] = type(lo)(float(slope[j]) * power)
    return power, squares_of(slope, 0, size)


@loop
def _step(
    x_adv_at: Address,
    closest_at: Address,
    grad_at: Address,
    x_at: Address,
    batch: Count,
    size: Count,
    loss_at: Address,
    prediction_at: Address,
    aims_at: Address,
    distance_at: Address,
    radius_at: Address,
    limit_at: Address,
    slots_at: Address,
    eps_at: Address,
    schedule_at: Address,
    steps: Count,
    overshoot: Real,
    lo: Real,
    hi: Real,
    kind: Count,
    is_fmn: Count,
    minds_bounds: Count,
    targeted: Count,
    stops: Count,
    memory: Address,
) -> None:
    x_adv, closest, x = pointer(x_adv_at, lo), pointer(closest_at, lo), pointer(x_at, lo)
    grad, loss, eps = pointer(grad_at, lo), pointer(loss_at, lo), pointer(eps_at, lo)
    prediction, aims = pointer(prediction_at, np.int64), pointer(aims_at, np.int64)
    distance, slots = pointer(distance_at, lo), pointer(slots_at, np.int32)
    radii, limit, schedule = pointer(radius_at, lo), pointer(limit_at, lo), pointer(schedule_at, lo)
    sums, first, row = pointer(memory, np.float64), memory + 16 * LANES, 8 * (size + _GAP)
    u, slope = pointer(first, lo), pointer(first + row, lo)
    magnitude, room = pointer(first + 2 * row, np.float64), pointer(first + 3 * row, np.float64)
    scratch, ones = pointer(first + 2 * row, lo), pointer(first + 3 * row, lo)
    lanes = pointer(first + 4 * row, lo)
    zero, one, infinite = type(lo)(0), type(lo)(1), type(lo)(math.inf)
    for b in range(batch):
        at, state = b * size, b * columns.WIDTH
        if slots[state + columns.ACTIVE] == 0:
            continue
        step, known = slots[state + columns.STEP], loss[b] == loss[b]
        hit = prediction[b] == aims[b]
        fooled = known and (hit if targeted != 0 else not hit)
        for j in range(size):
            u[j] = x_adv[at + j] - x[at + j]
        far = length_of(u, size, kind, scratch)
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
        power, square = _slope(grad, x_adv, at, size, minds_bounds, lo, hi, slope)
        gamma, radius = schedule[steps + step], radii[b]
        if kind == _L0 and fooled:
            fallen = _whole(radius * (one - gamma))
            radius = radius - one if radius - one < fallen else fallen
            radius = distance[b] if distance[b] < radius else radius
            radius = radius if radius > zero else zero
        elif kind == _L0:
            risen = _whole(radius * (one + gamma))
            radius = risen if risen > radius + one else radius + one
        elif fooled:
            radius = radius * (one - gamma)
            if is_fmn != 0:
                radius = distance[b] if distance[b] < radius else radius
        elif is_fmn != 0 and not distance[b] < infinite:
            dual = length_of(slope, size, 2 - kind, scratch)
            gap = type(lo)(float(abs(loss[b]) if known else zero) * power)
            gap = gap / dual * (one + overshoot) if dual > zero else infinite
            radius = far + gap
        else:
            radius = radius * (one + gamma)
        radius = limit[b] if limit[b] < radius else radius
        radii[b] = radius
        factor = float(schedule[step]) / math.sqrt(square) if square > 0.0 else 0.0
        for j in range(size):
            u[j] += type(lo)(float(slope[j]) * factor)
        if kind == 0:
            for j in range(size):
                value = -radius if u[j] < -radius else u[j]
                u[j] = radius if value > radius else value
        elif kind == 1:
            square = squares_of(u, 0, size)
            factor = float(radius) / math.sqrt(square) if square > 0.0 else 1.0
            for j in range(size):
                u[j] = type(lo)(float(u[j]) * factor)
        elif kind == _L0:
            for j in range(size):
                value = x[at + j] + u[j]
                value = lo if value < lo else value
                value = hi if value > hi else value
                scratch[j], slope[j] = abs(u[j]), value
                ones[j] = one
            for j in range(size, size + LANES):
                scratch[j] = ones[j] = zero
            count = int(radius) if radius > one else 1
            lowest, _, _ = last_taken(scratch, ones, size, min(count, size), lanes, sums)
            for j in range(size):
                value = slope[j]
                kept = scratch[j] >= lowest and value != x[at + j]
                x_adv[at + j] = value if kept else x[at + j]
            continue
        else:
            least, most = (lo, hi) if minds_bounds != 0 else (-infinite, infinite)
            for j in range(size):
                space = most - x[at + j] if u[j] >= zero else x[at + j] - least
                room[j] = space if space > zero else zero
                magnitude[j] = abs(u[j])
            for j in range(size, size + LANES):
                magnitude[j] = room[j] = 0
            t = threshold_of(magnitude, room, size, radius * 1.0, sums)
            if t >= 0:
                for j in range(size):
                    kept = magnitude[j] - t
                    kept = kept if kept > 0 else 0.0
                    kept = kept if kept < room[j] else room[j]
                    u[j] = type(lo)(-kept if u[j] < zero else kept)
        for j in range(size):
            value = x[at + j] + u[j]
            value = lo if value < lo else value
            x_adv[at + j] = hi if value > hi else value


def radius_step_(
    x_adv: torch.Tensor,
    closest: torch.Tensor,
    grad: torch.Tensor,
    x: torch.Tensor,
    loss: torch.Tensor,
    prediction: torch.Tensor,
    aims: torch.Tensor,
    distance: torch.Tensor,
    radius: torch.Tensor,
    limit: torch.Tensor,
    slots: torch.Tensor,
    eps: torch.Tensor,
    schedule: torch.Tensor,
    overshoot: float,
    lo: float,
    hi: float,
    norm: str,
    rule: str,
    minds_bounds: bool,
    targeted: bool,
    stop_early: bool,
) -> Any:
    """The op's arguments by position; NotImplemented where classes are int32, or eps or loss more
    exact than x_adv."""
    dtype, batch = x_adv.dtype, len(x_adv)
    if prediction.dtype != torch.int64 or aims.dtype != torch.int64:
        return NotImplemented
    if dtype is torch.float32 and (eps.dtype, loss.dtype) != (dtype, dtype):
        return NotImplemented
    if x_adv.numel() == 0:
        return None
    size = x_adv.numel() // batch
    eps, loss = eps.to(dtype), loss.to(dtype)
    memory = torch.empty(2 * LANES + _ROWS * (size + _GAP), dtype=torch.float64)
    _step[dtype](
        x_adv.data_ptr(),
        closest.data_ptr(),
        grad.data_ptr(),
        x.data_ptr(),
        batch,
        size,
        loss.data_ptr(),
        prediction.data_ptr(),
        aims.data_ptr(),
        distance.data_ptr(),
        radius.data_ptr(),
        limit.data_ptr(),
        slots.data_ptr(),
        eps.data_ptr(),
        schedule.data_ptr(),
        schedule.shape[1],
        overshoot,
        lo,
        hi,
        KINDS[norm],
        rule == "fmn",
        minds_bounds,
        targeted,
        stop_early,
        memory.data_ptr(),
    )
