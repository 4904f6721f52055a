"""Sigma-zero's step as a compiled loop: a row goes from verdict to next point."""

import math
from typing import Any

import numpy as np
import torch

from fastadv.kernels import slots as columns
from fastadv.ops.loops import Address, Count, Real, loop, pointer
from fastadv.ops.nearest.sparse_reference import FIRST, GUARD, LEAST, SECOND, SigmaZeroStep

_FIRST_REST, _SECOND_REST = 1.0 - FIRST, 1.0 - SECOND


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
    threshold_at: Address,
    slots_at: Address,
    eps_at: Address,
    schedule_at: Address,
    steps: Count,
    lo: Real,
    hi: Real,
    unit: Real,
    inverse: Real,
    smoothing: Real,
    share: Real,
    targeted: Count,
    stops: Count,
    scratch_at: Address,
) -> None:
    x_adv, closest, x = pointer(x_adv_at, lo), pointer(closest_at, lo), pointer(x_at, lo)
    grad, means, squares = pointer(grad_at, lo), pointer(mean_at, lo), pointer(square_at, lo)
    loss, eps, distance = pointer(loss_at, lo), pointer(eps_at, lo), pointer(distance_at, lo)
    prediction, aims = pointer(prediction_at, np.int64), pointer(aims_at, np.int64)
    thresholds, slots = pointer(threshold_at, lo), pointer(slots_at, np.int32)
    schedule, slopes = pointer(schedule_at, lo), pointer(scratch_at, lo)
    zero, one, guard = type(lo)(0), type(lo)(1), type(lo)(GUARD)
    first, first_rest = type(lo)(FIRST), type(lo)(_FIRST_REST)
    second, second_rest = type(lo)(SECOND), type(lo)(_SECOND_REST)
    for b in range(batch):
        at, state = b * size, b * columns.WIDTH
        if slots[state + columns.ACTIVE] == 0:
            continue
        step, known = slots[state + columns.STEP], loss[b] == loss[b]
        hit = prediction[b] == aims[b]
        fooled = known and (hit if targeted != 0 else not hit)
        changed = 0
        for j in range(at, at + size):
            changed += x_adv[j] != x[j]
        far = type(lo)(changed)
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
        weight = unit if not known or loss[b] <= zero else zero
        largest = zero
        for j in range(size):
            g = grad[at + j]
            g = g if g - g == 0 else zero
            d = (x_adv[at + j] - x[at + j]) * inverse
            base = d * d + smoothing
            slopes[j] = share * d / (base * base) - g * weight
            size_of = abs(slopes[j])
            largest = size_of if size_of > largest else largest
        most = largest if largest > type(lo)(LEAST) else type(lo)(LEAST)
        rate, spread = schedule[step], schedule[steps + step]
        change = schedule[2 * steps + step]
        threshold = thresholds[b] + (change if fooled else -change)
        threshold = zero if threshold < zero else (one if threshold > one else threshold)
        thresholds[b] = threshold
        for j in range(size):
            slope = slopes[j] / most
            mean = first * means[at + j] + first_rest * slope
            square = second * squares[at + j] + second_rest * (slope * slope)
            means[at + j], squares[at + j] = mean, square
            d = (x_adv[at + j] - x[at + j]) * inverse
            u = d - rate * (mean / (type(lo)(math.sqrt(square)) * spread + guard))
            value = x[at + j] + unit * u
            value = lo if value < lo else (hi if value > hi else value)
            still = abs(value - x[at + j]) * inverse < threshold or value == x[at + j]
            x_adv[at + j] = x[at + j] if still else value


def sigma_zero_step_(*arguments) -> Any:
    """The op's arguments by position; NotImplemented where classes are int32, or eps or loss more
    exact than x_adv."""
    call = SigmaZeroStep(*arguments)
    x_adv, dtype = call.x_adv, call.x_adv.dtype
    if call.prediction.dtype != torch.int64 or call.aims.dtype != torch.int64:
        return NotImplemented
    if dtype is torch.float32 and (call.eps.dtype, call.loss.dtype) != (dtype, dtype):
        return NotImplemented
    if x_adv.numel() == 0:
        return None
    size = x_adv.numel() // len(x_adv)
    eps, loss, scratch = call.eps.to(dtype), call.loss.to(dtype), torch.empty(size, dtype=dtype)
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
        call.threshold.data_ptr(),
        call.slots.data_ptr(),
        eps.data_ptr(),
        call.schedule.data_ptr(),
        call.schedule.shape[1],
        call.lo,
        call.hi,
        call.unit,
        1.0 / call.unit,
        call.smoothing,
        2.0 * call.smoothing / size,
        call.targeted,
        call.stop_early,
        scratch.data_ptr(),
    )
