"""The slot state after an evaluation: success, faults, best loss, and whether the slot steps on."""

import triton
import triton.language as tl

from .. import slots

_STEP = tl.constexpr(slots.STEP)
_SUCCESS_STEP = tl.constexpr(slots.SUCCESS_STEP)
_ACTIVE = tl.constexpr(slots.ACTIVE)
_FAULT = tl.constexpr(slots.FAULT)
_IMPROVED = tl.constexpr(slots.IMPROVED)
_WIDTH = tl.constexpr(slots.WIDTH)
_FAULT_NAN_LOGITS = tl.constexpr(slots.FAULT_NAN_LOGITS)
_FAULT_BAD_LABEL = tl.constexpr(slots.FAULT_BAD_LABEL)


@triton.jit
def advance_slot(
    slots_ptr, loss_ptr, best_loss_ptr, row, loss, fooled, has_nan, valid, steps, first_step,
    best_from, WRITES_LOSS: tl.constexpr, TRACK_BEST: tl.constexpr, STOP_EARLY: tl.constexpr,
):  # fmt: skip
    """Straight-line code with masked stores: only the program of a row touches its slot."""
    slot_ptr = slots_ptr + row * _WIDTH
    active = tl.load(slot_ptr + _ACTIVE) != 0
    step = tl.load(slot_ptr + _STEP)
    success_step = tl.load(slot_ptr + _SUCCESS_STEP)
    fault = tl.load(slot_ptr + _FAULT)
    counted = step >= first_step
    success_step = tl.where(fooled & counted & (success_step < 0), step, success_step)
    fault = fault | tl.where(has_nan, _FAULT_NAN_LOGITS, 0)
    fault = fault | tl.where(valid, 0, _FAULT_BAD_LABEL)
    goes_on = step < steps
    if STOP_EARLY:
        goes_on = goes_on & (success_step < 0)
    if TRACK_BEST:
        best_loss = tl.load(best_loss_ptr + row)
    tl.debug_barrier()  # every warp has loaded what one thread is about to store
    if TRACK_BEST:
        improved = active & (step >= best_from) & (loss > best_loss)
        tl.store(best_loss_ptr + row, loss, mask=improved)
        tl.store(slot_ptr + _IMPROVED, improved.to(tl.int32))
    if WRITES_LOSS:
        tl.store(loss_ptr + row, loss, mask=active)
    tl.store(slot_ptr + _SUCCESS_STEP, success_step, mask=active)
    tl.store(slot_ptr + _FAULT, fault, mask=active)
    tl.store(slot_ptr + _ACTIVE, goes_on.to(tl.int32), mask=active)
    tl.store(slot_ptr + _STEP, step + 1, mask=active & goes_on)
