"""The L2 step as a compiled loop. Norms are added up in float64."""

import math
from typing import Any

import numpy as np
import torch

from fastadv.kernels import box as planes
from fastadv.kernels import slots as slot_columns
from fastadv.ops.loop_math import squares_of
from fastadv.ops.loops import (
    Address,
    Count,
    Real,
    address,
    clamped,
    inner,
    larger,
    loop,
    pointer,
    smaller,
)
from fastadv.ops.steps import loops_shared
from fastadv.ops.steps.arguments import StepCall
from fastadv.ops.steps.loops_shared import cleaned

_LEAST, _MOST = 1e-200, 1e200  # squares between add up without underflow or overflow


@inner
def _scaled_up(direction, size):
    """By a power of two, which rounds nothing, to values around 1; all 0 where one is infinite."""
    largest = 0.0
    for j in range(size):
        largest = max(largest, abs(float(direction[j])))
    if 0.0 < largest < math.inf:
        power = 1.0
        while largest * power < 1.0 / 4294967296.0:
            power *= 4294967296.0
        while largest * power > 4294967296.0:
            power /= 4294967296.0
        return power
    return 0.0


@inner
def _moves(direction, size, step, guard):
    """`direction` becomes step * direction / (its norm + guard)."""
    square, scale = squares_of(direction, 0, size), 1.0
    if not _LEAST < square < _MOST:
        scale = _scaled_up(direction, size)
        square = 0.0
        for j in range(size):
            value = float(direction[j]) * scale
            square += value * value if scale > 0.0 else 0.0
    length = math.sqrt(square) + float(guard) * scale
    factor = float(step) / length if square > 0.0 else 0.0
    for j in range(size):
        move = float(direction[j]) * scale * factor if square > 0.0 else 0.0
        direction[j] = type(step)(move)


@loop
def _step(
    x_adv_at: Address,
    direction_at: Address,
    x_at: Address,
    scratch_at: Address,
    is_clean: Count,
    rows: Count,
    size: Count,
    step_size: Real,
    step_rows: Address,
    eps: Real,
    eps_rows: Address,
    lo: Real,
    hi: Real,
    guard: Real,
    slots_at: Address,
    box_at: Address,
    box_planes: Count,
) -> None:
    x_adv, grad, x = pointer(x_adv_at, eps), pointer(direction_at, eps), pointer(x_at, eps)
    steps, radii, box = pointer(step_rows, eps), pointer(eps_rows, eps), pointer(box_at, eps)
    move, u = pointer(scratch_at, eps), pointer(scratch_at, eps)
    slots, has_units = pointer(slots_at, np.int32), box_planes > planes.UNIT
    for row in range(rows):
        if slots_at != 0 and slots[row * slot_columns.WIDTH + slot_columns.ACTIVE] == 0:
            continue
        at = row * size
        lower = box_planes * at + planes.LOWER * size
        upper, unit = lower + size, box_planes * at + planes.UNIT * size
        for j in range(size):
            if is_clean != 0:
                move[j] = grad[at + j]
            else:
                move[j] = cleaned(grad, at + j, box, (box_planes - 1) * at, size, box_planes, True)
        _moves(move, size, steps[row] if step_rows != 0 else step_size, guard)
        for j in range(size):
            if has_units:
                move[j] *= box[unit + j]
            value = x_adv[at + j] - x[at + j] + move[j]
            u[size + j] = value / box[unit + j] if has_units else value
        norm = type(eps)(math.sqrt(squares_of(u, size, size)))
        radius = radii[row] if eps_rows != 0 else eps
        back = radius / norm
        for j in range(size):
            moved = x_adv[at + j] + move[j]
            if norm > radius:
                moved = x[at + j] + (x_adv[at + j] - x[at + j] + move[j]) * back
            if box_planes != 0:
                x_adv[at + j] = smaller(larger(moved, box[lower + j]), box[upper + j])
            else:
                x_adv[at + j] = clamped(moved, lo, hi)


def l2_step_(*arguments: Any) -> Any:
    """The op's arguments by position; NotImplemented as `loops_shared.takes` says."""
    *shared, box, guard = arguments
    call = StepCall(*shared)
    is_plain = call.x_adv.is_contiguous()
    if not loops_shared.takes(call) or (box is not None and not is_plain):
        return NotImplemented
    given = loops_shared.of_pixels(call)
    call = loops_shared.in_c_order(given)
    x_adv, rows, size = call.x_adv, *loops_shared.rows_of(call.x_adv)
    direction = call.grad
    if call.momentum is not None:
        loops_shared.update_momentum(call, box, in_units=True)
        direction = call.momentum
    scratch = torch.empty(2 * size, dtype=x_adv.dtype)
    _step[x_adv.dtype](
        x_adv.data_ptr(),
        direction.data_ptr(),
        call.x.data_ptr(),
        scratch.data_ptr(),
        call.momentum is not None,
        rows,
        size,
        call.step_size,
        address(call.step_rows),
        call.eps,
        address(call.eps_rows),
        call.lo,
        call.hi,
        guard,
        address(call.slots),
        address(box),
        planes.planes(box),
    )
    for one, copy in ((given.x_adv, x_adv), (given.momentum, call.momentum)):
        if one is not None and one is not copy:
            one.detach().copy_(copy)  # type: ignore[arg-type]
    if call.model_input is not None:
        loops_shared.write_model_input(given)
