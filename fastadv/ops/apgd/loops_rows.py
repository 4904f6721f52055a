"""What APGD's compiled steps share: the bookkeeping of a row, and how a step is called."""

from typing import Any

from fastadv.kernels import box as planes
from fastadv.kernels import slots as slot_columns
from fastadv.kernels.apgd import progress as apgd_progress
from fastadv.ops.apgd.step import ApgdStep
from fastadv.ops.loops import Loop, address, inner


@inner
def _copy(destination, source, at, size):
    for j in range(at, at + size):
        destination[j] = source[j]


@inner
def is_active(slots, row):
    return slots[row * slot_columns.WIDTH + slot_columns.ACTIVE] != 0


@inner
def is_first(slots, row):
    """Whether the start iterate was evaluated: the head has advanced the step already."""
    return slots[row * slot_columns.WIDTH + slot_columns.STEP] == 1


@inner
def has_to_restore(progress, row):
    return progress[row * apgd_progress.WIDTH + apgd_progress.RESTORE] != 0


@inner
def keep(x_adv, x_best, grad_best, grad, x_hit, slots, row, size, is_hit, restores):
    """What an active row has found is kept, and x_adv becomes what it steps from: where it
    restores, the best iterate."""
    at = row * size
    if slots[row * slot_columns.WIDTH + slot_columns.IMPROVED] != 0:
        _copy(x_best, x_adv, at, size)
        _copy(grad_best, grad, at, size)
    if is_hit:
        _copy(x_hit, x_adv, at, size)
    if restores:
        _copy(x_adv, x_best, at, size)


def run(loop: Loop, step: ApgdStep, scratch: Any = None) -> None:
    """The step by `loop`, whose arguments are these."""
    x_adv = step.x_adv
    rows = x_adv.shape[0]
    loop[x_adv.dtype](
        x_adv.data_ptr(),
        step.x_previous.data_ptr(),
        step.x_best.data_ptr(),
        step.grad_best.data_ptr(),
        step.grad.data_ptr(),
        step.x.data_ptr(),
        step.step_size.data_ptr(),
        step.eps.data_ptr(),
        step.lo,
        step.hi,
        step.slots.data_ptr(),
        step.progress.data_ptr(),
        address(step.correct),
        address(step.x_hit),
        address(step.box),
        planes.planes(step.box),
        address(scratch),
        rows,
        x_adv.numel() // max(rows, 1),
    )
