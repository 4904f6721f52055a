"""The L-infinity step as a compiled loop: the bits of the reference."""

from typing import Any

import numpy as np

from fastadv.kernels import box as planes
from fastadv.kernels import slots as slot_columns
from fastadv.ops.loops import Address, Count, Real, address, inner, larger, loop, pointer, smaller


@inner
def _sign(value):
    """1, -1 or 0, which it is of a NaN."""
    return (value > 0) - (value < 0)


@inner
def _row(x_adv, grad, x, at, size, step, radius, lo, hi):
    for j in range(at, at + size):
        moved = type(step)(_sign(grad[j])) * step + x_adv[j]
        moved = smaller(larger(moved, x[j] - radius), x[j] + radius)
        moved = lo if lo > moved else moved
        x_adv[j] = hi if hi < moved else moved


@inner
def _row_in_box(x_adv, grad, at, size, step, box, count):
    lower, upper = count * at + planes.LOWER * size - at, count * at + planes.UPPER * size - at
    unit = count * at + planes.UNIT * size - at
    for j in range(at, at + size):
        scaled = box[unit + j] * step if count > planes.UNIT else step
        moved = type(step)(_sign(grad[j])) * scaled + x_adv[j]
        x_adv[j] = smaller(larger(moved, box[lower + j]), box[upper + j])


@loop
def _linf_step(
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
    steps, radii, slots = (
        pointer(step_rows, eps),
        pointer(eps_rows, eps),
        pointer(slots_at, np.int32),
    )
    box = pointer(box_at, eps)
    for row in range(rows):
        if slots_at != 0 and slots[row * slot_columns.WIDTH + slot_columns.ACTIVE] == 0:
            continue
        step = steps[row] if step_rows != 0 else step_size
        if box_at != 0:
            _row_in_box(x_adv, grad, row * size, size, step, box, box_planes)
        else:
            radius = radii[row] if eps_rows != 0 else eps
            _row(x_adv, grad, x, row * size, size, step, radius, lo, hi)


def linf_step_(
    x_adv: Any,
    grad: Any,
    x: Any,
    step_size: float,
    step_rows: Any,
    eps: float,
    eps_rows: Any,
    lo: float,
    hi: float,
    slots: Any,
    momentum: Any,
    decay: float,
    model_input: Any,
    mean: Any,
    std: Any,
    box: Any,
) -> Any:
    """The op's arguments by position; NotImplemented with a momentum or a model input."""
    if momentum is not None or model_input is not None:
        return NotImplemented
    rows = len(x_adv)
    _linf_step[x_adv.dtype](
        x_adv.data_ptr(),
        grad.data_ptr(),
        x.data_ptr(),
        rows,
        x_adv.numel() // max(rows, 1),
        step_size,
        address(step_rows),
        eps,
        address(eps_rows),
        lo,
        hi,
        address(slots),
        address(box),
        planes.planes(box),
    )
