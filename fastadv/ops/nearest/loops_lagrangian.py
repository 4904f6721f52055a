"""ALMA's step as a compiled loop: a row goes from verdict to next point."""

import math
from typing import Any

import numpy as np
import torch

from fastadv.kernels import slots as columns
from fastadv.ops.loop_math import squares_of
from fastadv.ops.loops import Address, Count, Real, inner, loop, pointer
from fastadv.ops.nearest.lagrangian_reference import AlmaStep

_LEAST, _MOST = 1e-6, 1e12  # as in the reference
_GUARD = 1e-8
_MEMORY = 5
_DOUBLINGS, _HALVINGS = 60, 20


@inner
def _slope(ratio, rho, mu):
    product = rho * ratio
    if ratio >= 0:
        return mu + 2 * mu * product + product * product / 2
    return mu / ((1 - product) * (1 - product))


@inner
def _reaches(x, grad, at, size, rate, slope, lo, hi, reach, moved):
    zero = type(lo)(0)
    for j in range(size):
        g = grad[at + j]
        g = g if g - g == 0 else zero
        value = x[at + j] + rate * (slope * g)
        value = lo if value < lo else value
        moved[j] = (hi if value > hi else value) - x[at + j]
    return type(lo)(math.sqrt(squares_of(moved, 0, size))) > reach


@inner
def _found_rate(x, grad, at, size, slope, lo, hi, reach, moved):
    under, over, half = type(lo)(0), type(lo)(1), type(lo)(0.5)
    doubled, halved, rate = 0, 0, over
    while halved < _HALVINGS:
        beyond = _reaches(x, grad, at, size, rate, slope, lo, hi, reach, moved)
        if doubled < _DOUBLINGS:
            if not beyond:
                under, over = over, over + over
            doubled = _DOUBLINGS if beyond else doubled + 1
            rate = over if doubled < _DOUBLINGS else (under + over) * half
        else:
            under, over, halved = under if beyond else rate, rate if beyond else over, halved + 1
            rate = (under + over) * half
    return rate


@loop
def _step(
    x_adv_at: Address,
    closest_at: Address,
    grad_at: Address,
    x_at: Address,
    square_at: Address,
    momentum_at: Address,
    batch: Count,
    size: Count,
    loss_at: Address,
    prediction_at: Address,
    aims_at: Address,
    distance_at: Address,
    memory_at: Address,
    slots_at: Address,
    eps_at: Address,
    lo: Real,
    hi: Real,
    unit: Real,
    reach: Real,
    fall: Real,
    rms: Real,
    inertia: Real,
    smoothing: Real,
    improvement: Real,
    increase: Real,
    steps: Count,
    check_steps: Count,
    targeted: Count,
    stops: Count,
    scratch_at: Address,
) -> None:
    x_adv, closest, x = pointer(x_adv_at, lo), pointer(closest_at, lo), pointer(x_at, lo)
    grad, square, momentum = pointer(grad_at, lo), pointer(square_at, lo), pointer(momentum_at, lo)
    loss, eps, distance = pointer(loss_at, lo), pointer(eps_at, lo), pointer(distance_at, lo)
    prediction, aims = pointer(prediction_at, np.int64), pointer(aims_at, np.int64)
    memory, slots = pointer(memory_at, lo), pointer(slots_at, np.int32)
    away = pointer(scratch_at, lo)
    zero, one, infinite = type(lo)(0), type(lo)(1), type(lo)(math.inf)
    for b in range(batch):
        at, state = b * size, b * columns.WIDTH
        if slots[state + columns.ACTIVE] == 0:
            continue
        step, known = slots[state + columns.STEP], loss[b] == loss[b]
        hit = prediction[b] == aims[b]
        fooled = (hit if targeted != 0 else not hit) and loss[b] > zero
        for j in range(size):
            away[j] = x_adv[at + j] - x[at + j]
        far = type(lo)(math.sqrt(squares_of(away, 0, size)))
        known_before = distance[b] < infinite
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
        own = b * _MEMORY
        ratio = -loss[b] if known else zero
        mu, rho, found_at, now = memory[own], memory[own + 1], memory[own + 3], type(lo)(step)
        checks = step == 0 or (step + 1) % check_steps == 0
        if checks and step > 0 and not known_before and ratio >= improvement * memory[own + 2]:
            rho *= increase
        if step > 0:
            mu += smoothing * (_slope(ratio, rho, mu) - mu)
            mu = type(lo)(_LEAST) if mu < type(lo)(_LEAST) else mu
            mu = type(lo)(_MOST) if mu > type(lo)(_MOST) else mu
        if fooled and not known_before:
            found_at = now
        memory[own], memory[own + 1], memory[own + 3] = mu, rho, found_at
        if checks:
            memory[own + 2] = ratio
        slope = type(lo)(_slope(ratio, rho, mu)) * unit
        if reach > zero and step == 0:
            memory[own + 4] = _found_rate(
                x, grad, at, size, slope * unit, lo, hi, reach, pointer(scratch_at + 8 * size, lo)
            )
        since = now - found_at if now > found_at else zero
        factor = (
            memory[own + 4] * type(lo)(math.exp(float(since / (steps - found_at) * fall))) * unit
        )
        inverse = one / far if far > zero and step > 0 else zero
        keep, rest, guard = rms, one - rms, type(lo)(_GUARD)
        for j in range(size):
            g = grad[at + j]
            g = g if g - g == 0 else zero
            whole = away[j] * inverse - slope * g
            mean = keep * square[at + j] + rest * (whole * whole)
            carried = inertia * momentum[at + j] + whole / (math.sqrt(mean) + guard)
            square[at + j], momentum[at + j] = mean, carried
            value = x[at + j] + (away[j] - factor * carried)
            value = lo if value < lo else value
            x_adv[at + j] = hi if value > hi else value


def alma_step_(*arguments) -> Any:
    """The op's arguments by position; NotImplemented where classes are int32, or eps or loss more
    exact than x_adv."""
    call = AlmaStep(*arguments)
    x_adv, dtype = call.x_adv, call.x_adv.dtype
    if call.prediction.dtype != torch.int64 or call.aims.dtype != torch.int64:
        return NotImplemented
    if dtype is torch.float32 and (call.eps.dtype, call.loss.dtype) != (dtype, dtype):
        return NotImplemented
    if x_adv.numel() == 0:
        return None
    size = x_adv.numel() // len(x_adv)
    eps, loss, scratch = call.eps.to(dtype), call.loss.to(dtype), torch.empty(3 * size, dtype=dtype)
    _step[dtype](
        x_adv.data_ptr(),
        call.closest.data_ptr(),
        call.grad.data_ptr(),
        call.x.data_ptr(),
        call.square.data_ptr(),
        call.momentum.data_ptr(),
        len(x_adv),
        size,
        loss.data_ptr(),
        call.prediction.data_ptr(),
        call.aims.data_ptr(),
        call.distance.data_ptr(),
        call.memory.data_ptr(),
        call.slots.data_ptr(),
        eps.data_ptr(),
        *call[13:25],
        call.targeted,
        call.stop_early,
        scratch.data_ptr(),
    )
