"""What a search for the nearest adversarial point makes of the point just evaluated."""

import triton
import triton.language as tl

from .. import slots

_STEP = tl.constexpr(slots.STEP)
_SUCCESS_STEP = tl.constexpr(slots.SUCCESS_STEP)
_ACTIVE = tl.constexpr(slots.ACTIVE)
_FAULT = tl.constexpr(slots.FAULT)
_NEAREST_STEP = tl.constexpr(slots.NEAREST_STEP)
_WIDTH = tl.constexpr(slots.WIDTH)
_FAULT_NAN_LOGITS = tl.constexpr(slots.FAULT_NAN_LOGITS)


@triton.jit
def is_active(slots_ptr, row):
    return tl.load(slots_ptr + row * _WIDTH + _ACTIVE) != 0


@triton.jit
def judge(
    slots_ptr, loss_ptr, prediction_ptr, aims_ptr, distance_ptr, eps_ptr, row, length, steps,
    TARGETED: tl.constexpr, STOP_EARLY: tl.constexpr, BEYOND: tl.constexpr, DTYPE: tl.constexpr,
    STOP_ANYWHERE: tl.constexpr = False, least=None,
):  # fmt: skip
    """(fooled, closer, over, step, loss, nearest) of an active row whose point lies at `length`.

    Writes distance and all of the slot's state. BEYOND: only a loss above 0 fools; least: only one
    of at least it. step: before this; loss: 0 where it is NaN; nearest: the distance of the nearest
    adversarial point, inf while there is none.
    """
    slot_ptr = slots_ptr + row * _WIDTH
    step = tl.load(slot_ptr + _STEP)
    success = tl.load(slot_ptr + _SUCCESS_STEP)
    fault = tl.load(slot_ptr + _FAULT)
    loss = tl.load(loss_ptr + row).to(DTYPE)
    hit = tl.load(prediction_ptr + row).to(tl.int64) == tl.load(aims_ptr + row).to(tl.int64)
    nearest = tl.load(distance_ptr + row).to(DTYPE)
    within = length <= tl.load(eps_ptr + row).to(DTYPE)
    known = loss == loss
    if TARGETED:
        fooled = known & hit
    else:
        fooled = known & (hit == 0)
    if BEYOND:
        fooled = fooled & (loss > 0)
    if least is not None:
        fooled = fooled & (loss >= least)
    closer = fooled & (length < nearest)
    within = within & fooled
    over = step + 1 >= steps
    if STOP_EARLY:
        over = over | within
    if STOP_ANYWHERE:
        over = over | fooled
    tl.debug_barrier()  # every warp has read the state before one thread writes it
    tl.store(distance_ptr + row, length, mask=closer)
    tl.store(slot_ptr + _NEAREST_STEP, step, mask=closer)
    tl.store(slot_ptr + _SUCCESS_STEP, step, mask=within & (success < 0))
    tl.store(slot_ptr + _FAULT, fault | _FAULT_NAN_LOGITS, mask=known == 0)
    tl.store(slot_ptr + _ACTIVE, 0, mask=over)
    tl.store(slot_ptr + _STEP, step + 1, mask=over == 0)
    nearest = tl.where(closer, length, nearest)
    return fooled, closer, over, step, tl.where(known, loss, 0.0), nearest
