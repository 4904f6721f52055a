"""APGD's check: did the loss rise often enough to keep the step size? One launch for all slots."""

import triton
import triton.language as tl

from .. import slots
from ..aot import AotCase, argument_types
from ..geometry import blocks, compute_dtype
from ..launching import launch
from . import progress as apgd_progress

_STEP = tl.constexpr(slots.STEP)
_ACTIVE = tl.constexpr(slots.ACTIVE)
_IMPROVED = tl.constexpr(slots.IMPROVED)
_SLOT_WIDTH = tl.constexpr(slots.WIDTH)
_PREVIOUS_LOSS = tl.constexpr(apgd_progress.PREVIOUS_LOSS)
_INCREASES = tl.constexpr(apgd_progress.INCREASES)
_CHECKED_BEST = tl.constexpr(apgd_progress.CHECKED_BEST)
_REDUCED = tl.constexpr(apgd_progress.REDUCED)
_RESTORE = tl.constexpr(apgd_progress.RESTORE)
_WIDTH = tl.constexpr(apgd_progress.WIDTH)

_ROWS = 128  # slots of a program, one a thread


@triton.jit
def is_active(slots_ptr, row):
    return tl.load(slots_ptr + row * _SLOT_WIDTH + _ACTIVE) != 0


@triton.jit
def turn_of(slots_ptr, progress_ptr, row):
    """(first, improved, restore): what the step of a row depends on.

    first: the start iterate was evaluated. restore: the step starts from x_best, which the iterate
    just evaluated is not.
    """
    # the head has advanced STEP already
    first = tl.load(slots_ptr + row * _SLOT_WIDTH + _STEP) == 1
    improved = tl.load(slots_ptr + row * _SLOT_WIDTH + _IMPROVED) != 0
    restore = tl.load(progress_ptr + row * _WIDTH + _RESTORE) != 0
    return first, improved, restore & (improved == 0)


@triton.jit
def misclassified(correct_ptr, row):
    return tl.load(correct_ptr + row).to(tl.int32) == 0


@triton.jit
def apgd_check_kernel(
    progress_ptr, step_size_ptr, loss_ptr, best_loss_ptr, slots_ptr, checkpoints_ptr,
    rho: "fp64", B,  # noqa: F821
    DTYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One slot a thread."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    slot_ptr = slots_ptr + row * _SLOT_WIDTH
    active = (row < B) & (tl.load(slot_ptr + _ACTIVE, mask=row < B, other=0) != 0)
    t = tl.load(slot_ptr + _STEP, mask=active, other=1) - 1
    period = tl.load(checkpoints_ptr + t, mask=active, other=0)
    loss = tl.load(loss_ptr + row, mask=active, other=0.0).to(DTYPE)
    best_loss = tl.load(best_loss_ptr + row, mask=active, other=0.0).to(DTYPE)
    step_size = tl.load(step_size_ptr + row, mask=active, other=0.0)
    row_ptr = progress_ptr + row * _WIDTH
    previous_loss = tl.load(row_ptr + _PREVIOUS_LOSS, mask=active, other=0.0)
    increases = tl.load(row_ptr + _INCREASES, mask=active, other=0.0)
    checked_best = tl.load(row_ptr + _CHECKED_BEST, mask=active, other=0.0)
    reduced = tl.load(row_ptr + _REDUCED, mask=active, other=0.0)

    first = t == 0
    checks = (period > 0) & (t > 0)
    increases += tl.where(loss > previous_loss, 1.0, 0.0).to(DTYPE)
    most = (rho * period.to(tl.float64)).to(DTYPE)
    fails = (increases <= most) | ((reduced == 0) & (checked_best >= best_loss))
    halves = checks & fails
    flag = tl.where(halves, 1.0, 0.0).to(DTYPE)

    tl.store(row_ptr + _PREVIOUS_LOSS, tl.where(first, 0.0, loss), mask=active)
    tl.store(row_ptr + _INCREASES, tl.where(first | checks, 0.0, increases), mask=active)
    tl.store(row_ptr + _CHECKED_BEST, best_loss, mask=active & (first | checks))
    tl.store(row_ptr + _REDUCED, tl.where(first, 1.0, flag), mask=active & (first | checks))
    tl.store(row_ptr + _RESTORE, flag, mask=active)
    tl.store(step_size_ptr + row, step_size * 0.5, mask=active & halves)


def launch_apgd_check(progress, step_size, loss, best_loss, slot_state, checkpoints, rho):
    """One launch."""
    batch = progress.shape[0]
    if batch == 0:
        return
    launch(
        apgd_check_kernel, blocks(batch, _ROWS),
        (progress, step_size, loss, best_loss, slot_state, checkpoints, rho, batch),
        num_warps=_ROWS // 32, DTYPE=compute_dtype(progress), BLOCK=_ROWS,
    )  # fmt: skip


def aot_cases():
    types = argument_types(apgd_check_kernel, checkpoints_ptr="*i32")
    constants = dict(DTYPE=tl.float32, BLOCK=_ROWS)
    return [AotCase("apgd_check", apgd_check_kernel, types, constants, _ROWS // 32)]
