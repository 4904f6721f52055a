"""APGD's check of its progress as a compiled loop: the bits of the reference."""

from typing import Any

import numpy as np

from fastadv.kernels import slots as slot_columns
from fastadv.kernels.apgd import progress as columns
from fastadv.ops.loops import Address, Count, Double, Real, loop, pointer


@loop
def _check(
    progress_at: Address,
    step_size_at: Address,
    loss_at: Address,
    best_at: Address,
    slots_at: Address,
    checkpoints_at: Address,
    rows: Count,
    evaluations: Count,
    rho: Double,
    half: Real,
) -> None:
    progress, step_size = pointer(progress_at, half), pointer(step_size_at, half)
    losses, bests = pointer(loss_at, half), pointer(best_at, half)
    slots, checkpoints = pointer(slots_at, np.int32), pointer(checkpoints_at, np.int32)
    zero, one = type(half)(0.0), type(half)(1.0)
    for row in range(rows):
        if slots[row * slot_columns.WIDTH + slot_columns.ACTIVE] == 0:
            continue
        t = slots[row * slot_columns.WIDTH + slot_columns.STEP] - 1
        t = min(max(t, 0), evaluations - 1)
        period, at, loss, best = checkpoints[t], row * columns.WIDTH, losses[row], bests[row]
        checks = t > 0 and period > 0
        increases = progress[at + columns.INCREASES]
        if loss > progress[at + columns.PREVIOUS_LOSS]:
            increases += one
        halves = False
        if checks:
            fails = increases <= type(half)(period * rho)
            stuck = progress[at + columns.CHECKED_BEST] >= best
            halves = fails or (stuck and progress[at + columns.REDUCED] == zero)
        progress[at + columns.PREVIOUS_LOSS] = loss if t > 0 else zero
        progress[at + columns.INCREASES] = zero if checks or t == 0 else increases
        if checks or t == 0:
            progress[at + columns.CHECKED_BEST] = best
            progress[at + columns.REDUCED] = one if halves or t == 0 else zero
        progress[at + columns.RESTORE] = one if halves else zero
        if halves:
            step_size[row] *= half


def apgd_check_(
    progress: Any,
    step_size: Any,
    loss: Any,
    best_loss: Any,
    slots: Any,
    checkpoints: Any,
    rho: float,
) -> None:
    """The op's arguments by position."""
    _check[progress.dtype](
        progress.data_ptr(),
        step_size.data_ptr(),
        loss.data_ptr(),
        best_loss.data_ptr(),
        slots.data_ptr(),
        checkpoints.data_ptr(),
        progress.shape[0],
        checkpoints.shape[0],
        rho,
        0.5,
    )
