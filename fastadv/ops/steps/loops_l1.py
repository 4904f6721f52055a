"""The sparse L1 step and the projection onto L1 ball and box as a compiled loop, without a sort."""

import math
from typing import Any

import numpy as np
import torch

from fastadv.kernels import slots as slot_columns
from fastadv.ops.loops import Address, Count, Real, address, inner, loop, pointer
from fastadv.ops.loops_taken import LANES, last_taken
from fastadv.ops.steps import loops_shared
from fastadv.ops.steps.arguments import StepCall

_TURNS = 200  # bisection alone takes 60 or so
_SAME = 1e-15  # of the largest magnitude and of radius / slope: the rounding of a threshold
_GAP = 2 * LANES + 24  # numbers behind a row: padding, lanes, and another line of the cache


@inner
def _least_kept(direction, at, size, kept, magnitude, ones, lanes, sums):
    """The `kept`-th largest |direction|, or the smallest that is not 0; where all are, infinity."""
    zero = type(magnitude[0])(0)
    for j in range(size):
        value = abs(direction[at + j])
        magnitude[j] = value if value == value else zero
        ones[j] = 1
    for j in range(size, size + LANES):
        magnitude[j] = ones[j] = 0
    least, _, _ = last_taken(magnitude, ones, size, kept, lanes, sums)
    return least


@inner
def _mass(magnitude, room, size, t, sums):
    """(sum(clamp(magnitude - t, 0, room)), how many are between)."""
    for k in range(2 * LANES):
        sums[k] = 0
    for at in range(0, size, LANES):
        for k in range(LANES):
            excess, far = magnitude[at + k] - t, room[at + k]
            above = excess if excess > 0 else 0.0
            sums[k] += above if above < far else far
            sums[LANES + k] += 1.0 if (excess > 0) & (excess < far) else 0.0
    width = LANES // 2
    while width > 0:
        for k in range(width):
            sums[k] += sums[k + width]
            sums[LANES + k] += sums[LANES + k + width]
        width //= 2
    return sums[0], sums[LANES]


@inner
def threshold_of(magnitude, room, size, radius, sums):
    """t with sum(clamp(magnitude - t, 0, room)) = radius; negative where it is no more at 0.

    Newton's steps within a bracket, which is halved where they do not: exact on the line of a t.
    """
    found, slope = _mass(magnitude, room, size, 0.0, sums)
    if not found > radius:
        return -1.0
    top = 0.0
    for j in range(size):
        top = magnitude[j] if magnitude[j] > top else top
    low, high, t, halve, same = 0.0, top, 0.0, False, _SAME * top
    for _ in range(_TURNS):
        step = t + (found - radius) / slope if slope > 0 else math.inf
        if slope > 0:
            same = _SAME * (top + radius / slope)
        if slope > 0 and abs(step - t) <= same:
            t = step
            break
        before, t = t, step
        if halve or not (low < step and step < high):
            t = low + 0.5 * (high - low)
        if t == before or t == low or t == high:
            break
        width = high - low
        found, slope = _mass(magnitude, room, size, t, sums)
        if found > radius:
            low = t
        else:
            high = t
        halve = high - low > 0.5 * width
    most = t + same
    for j in range(size):  # what comes back to x, or leaves its bound, within rounding does so
        kink = magnitude[j]
        t = kink if (kink > t) & (kink <= most) else t
        kink -= room[j]
        t = kink if (kink > t) & (kink <= most) else t
    return t


@loop
def _move(
    out_at: Address,
    x_adv_at: Address,
    grad_at: Address,
    x_at: Address,
    rows: Count,
    size: Count,
    step_size: Real,
    step_rows: Address,
    eps: Real,
    eps_rows: Address,
    lo: Real,
    hi: Real,
    slots_at: Address,
    sparsity: Real,
    sparsity_rows: Address,
    memory: Address,
) -> None:
    out, x_adv, grad, x = (
        pointer(out_at, eps),
        pointer(x_adv_at, eps),
        pointer(grad_at, eps),
        pointer(x_at, eps),
    )
    steps, radii, shares = (
        pointer(step_rows, eps),
        pointer(eps_rows, eps),
        pointer(sparsity_rows, eps),
    )
    slots = pointer(slots_at, np.int32)
    sums, first, row_size = pointer(memory, np.float64), memory + 16 * LANES, 8 * (size + _GAP)
    magnitude, room = pointer(first, np.float64), pointer(first + row_size, np.float64)
    moved, absolute = pointer(first + 2 * row_size, eps), pointer(first + 3 * row_size, eps)
    ones, lanes = pointer(first + 4 * row_size, eps), pointer(first + 5 * row_size, eps)
    zero, one = type(eps)(0), type(eps)(1)
    for row in range(rows):
        if slots_at != 0 and slots[row * slot_columns.WIDTH + slot_columns.ACTIVE] == 0:
            continue
        at = row * size
        step, radius = zero, radii[row] if eps_rows != 0 else eps
        least = zero
        if grad_at != 0:
            share = shares[row] if sparsity_rows != 0 else sparsity
            dropped = int((one - share) * type(eps)(size))
            dropped = min(max(dropped, 0), size - 1)
            least = _least_kept(grad, at, size, size - dropped, absolute, ones, lanes, sums)
            count = 0
            for j in range(size):
                count += absolute[j] >= least
            step = steps[row] if step_rows != 0 else step_size
            step = step / type(eps)(max(count, 1))
        for j in range(size):
            move = zero
            if grad_at != 0 and absolute[j] >= least:
                move = step if grad[at + j] > 0 else -step
            moved[j] = x_adv[at + j] + move
            u = x_adv[at + j] - x[at + j] + move
            far = hi - x[at + j] if u >= 0 else x[at + j] - lo
            room[j] = far if far > 0 else zero
            magnitude[j] = abs(u)
            absolute[j] = u
        for j in range(size, size + LANES):
            magnitude[j] = room[j] = 0
        t = threshold_of(magnitude, room, size, radius * 1.0, sums)
        for j in range(size):
            value = moved[j]
            if t >= 0:
                z = magnitude[j] - t
                z = z if z > 0 else 0.0
                z = z if z < room[j] else room[j]
                value = type(eps)(x[at + j] * 1.0 + (-z if absolute[j] < 0 else z))
            value = lo if value < lo else value
            out[at + j] = hi if value > hi else value


def _memory(size: int) -> torch.Tensor:
    return torch.empty(2 * LANES + 6 * (size + _GAP), dtype=torch.float64)


def l1_step_(*arguments: Any) -> Any:
    """The op's arguments by position; NotImplemented with a momentum, and as `loops_shared.takes`
    says."""
    *shared, sparsity, sparsity_rows = arguments
    given = StepCall(*shared)
    if given.momentum is not None or not loops_shared.takes(given):
        return NotImplemented
    if given.x_adv.numel() == 0:
        return None
    given = loops_shared.of_pixels(given)
    call = loops_shared.in_c_order(given)
    x_adv, rows, size = call.x_adv, *loops_shared.rows_of(call.x_adv)
    memory = _memory(size)
    _move[x_adv.dtype](
        x_adv.data_ptr(),
        x_adv.data_ptr(),
        call.grad.data_ptr(),
        call.x.data_ptr(),
        rows,
        size,
        call.step_size,
        address(call.step_rows),
        call.eps,
        address(call.eps_rows),
        call.lo,
        call.hi,
        address(call.slots),
        sparsity,
        address(sparsity_rows),
        memory.data_ptr(),
    )
    if x_adv is not given.x_adv:
        given.x_adv.detach().copy_(x_adv)
    if given.model_input is not None:
        loops_shared.write_model_input(given)
    return None


def project_l1(
    x_adv: torch.Tensor,
    x: torch.Tensor,
    eps: float,
    eps_rows: torch.Tensor | None,
    lo: float,
    hi: float,
) -> Any:
    """The op's arguments by position."""
    out = torch.empty_like(x_adv)
    if x_adv.numel() == 0:
        return out
    rows = len(x_adv)
    size = x_adv.numel() // rows
    memory = _memory(size)
    moved, x = x_adv.detach().contiguous(), x.detach().contiguous()  # sums in C order
    found = out if out.is_contiguous() else torch.empty_like(moved)
    _move[x_adv.dtype](
        found.data_ptr(),
        moved.data_ptr(),
        0,
        x.data_ptr(),
        rows,
        size,
        0.0,
        0,
        eps,
        address(eps_rows),
        lo,
        hi,
        0,
        0.0,
        0,
        memory.data_ptr(),
    )
    return out if found is out else out.copy_(found)
