"""The L-infinity step as a compiled loop: the bits of the reference."""

from typing import Any

import numpy as np

from fastadv.kernels import box as planes
from fastadv.kernels import slots as slot_columns
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


@inner
def _sign(value):
    """1, -1 or 0, which it is of a NaN."""
    return (value > 0) - (value < 0)


@inner
def _row(x_adv, grad, x, at, size, step, radius, lo, hi):
    for j in range(at, at + size):
        moved = type(step)(_sign(grad[j])) * step + x_adv[j]
        moved = smaller(larger(moved, x[j] - radius), x[j] + radius)
        x_adv[j] = clamped(moved, lo, hi)


@inner
def _row_in_box(x_adv, grad, at, size, step, box, count):
    lower, upper = count * at + planes.LOWER * size - at, count * at + planes.UPPER * size - at
    unit = count * at + planes.UNIT * size - at
    for j in range(at, at + size):
        scaled = box[unit + j] * step if count > planes.UNIT else step
        moved = type(step)(_sign(grad[j])) * scaled + x_adv[j]
        x_adv[j] = smaller(larger(moved, box[lower + j]), box[upper + j])


@loop
def _step(
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
    box_at: Address,
    box_planes: Count,
) -> None:
    x_adv, grad, x = pointer(x_adv_at, eps), pointer(grad_at, eps), pointer(x_at, eps)
    steps, radii, box = pointer(step_rows, eps), pointer(eps_rows, eps), pointer(box_at, eps)
    slots = pointer(slots_at, np.int32)
    for row in range(rows):
        if slots_at != 0 and slots[row * slot_columns.WIDTH + slot_columns.ACTIVE] == 0:
            continue
        step = steps[row] if step_rows != 0 else step_size
        if box_at != 0:
            _row_in_box(x_adv, grad, row * size, size, step, box, box_planes)
        else:
            radius = radii[row] if eps_rows != 0 else eps
            _row(x_adv, grad, x, row * size, size, step, radius, lo, hi)


def linf_step_(*arguments: Any) -> Any:
    """The op's arguments by position; NotImplemented as `loops_shared.takes` says, and for signs of
    gradients in another layout, of which the reference has the same bits."""
    *shared, box = arguments
    call = StepCall(*shared)
    across = call.momentum is None and loops_shared.is_across(call)
    in_box = box is not None and call.momentum is not None and not call.x_adv.is_contiguous()
    if across or in_box or not loops_shared.takes(call):
        return NotImplemented
    x_adv, rows, size = call.x_adv, *loops_shared.rows_of(call.x_adv)
    direction = call.grad
    if call.momentum is not None:
        loops_shared.update_momentum(loops_shared.of_pixels(call), box, in_units=False)
        direction = call.momentum
    if box is None and call.slots is None and call.step_rows is None and call.eps_rows is None:
        rows, size = 1, rows * size  # all elements are alike
    _step[x_adv.dtype](
        x_adv.data_ptr(),
        direction.data_ptr(),
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
        address(box),
        planes.planes(box),
    )
    if call.model_input is not None:
        loops_shared.write_model_input(call)
