"""What FAB makes of the point just evaluated: the slot's state, and how its two projections mix."""

import triton
import triton.language as tl

from .. import slots
from ..rounding import divide

_STEP = tl.constexpr(slots.STEP)
_SUCCESS_STEP = tl.constexpr(slots.SUCCESS_STEP)
_ACTIVE = tl.constexpr(slots.ACTIVE)
_FAULT = tl.constexpr(slots.FAULT)
_WIDTH = tl.constexpr(slots.WIDTH)
_FAULT_NAN_LOGITS = tl.constexpr(slots.FAULT_NAN_LOGITS)
_LEAST_LENGTH = tl.constexpr(1e-8)  # the authors': keeps a1 / (a1 + a2) from 0 / 0


@triton.jit
def is_active(slots_ptr, row):
    return tl.load(slots_ptr + row * _WIDTH + _ACTIVE) != 0


@triton.jit
def load_verdict(
    slots_ptr, difference_ptr, prediction_ptr, labels_ptr, pulled_ptr, row, steps,
    DTYPE: tl.constexpr,
):  # fmt: skip
    """(fooled, over, known, difference): fooled by a new point; STEP == steps; not NaN, else 0."""
    step = tl.load(slots_ptr + row * _WIDTH + _STEP)
    difference = tl.load(difference_ptr + row).to(DTYPE)
    prediction = tl.load(prediction_ptr + row).to(tl.int64)
    label = tl.load(labels_ptr + row).to(tl.int64)
    known = difference == difference
    new = (step > 0) & (tl.load(pulled_ptr + row).to(tl.int32) == 0)
    fooled = new & known & (prediction != label)
    return fooled, step >= steps, known, tl.where(known, difference, 0.0)


@triton.jit
def judge_distance(
    slots_ptr, distance_ptr, eps_ptr, row, length, over,
    STOP_EARLY: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """(closer, over) of a fooled row whose point lies at `length`; writes distance and success."""
    closer = length < tl.load(distance_ptr + row).to(DTYPE)
    within = length <= tl.load(eps_ptr + row).to(DTYPE)
    slot_ptr = slots_ptr + row * _WIDTH
    step = tl.load(slot_ptr + _STEP)
    first = within & (tl.load(slot_ptr + _SUCCESS_STEP) < 0)
    if STOP_EARLY:
        over = over | within
    tl.debug_barrier()  # every warp has read the state before one thread writes it
    tl.store(distance_ptr + row, length, mask=closer)
    tl.store(slot_ptr + _SUCCESS_STEP, step, mask=first)
    return closer, over


@triton.jit
def store_verdict(slots_ptr, pulled_ptr, row, fooled, over, known, MOVES: tl.constexpr):
    """After the move: ACTIVE, STEP, FAULT and pulled_back."""
    slot_ptr = slots_ptr + row * _WIDTH
    step = tl.load(slot_ptr + _STEP)
    fault = tl.load(slot_ptr + _FAULT)
    tl.debug_barrier()
    tl.store(slot_ptr + _FAULT, fault | _FAULT_NAN_LOGITS, mask=known == 0)
    tl.store(slot_ptr + _ACTIVE, 0, mask=over)
    if MOVES:
        tl.store(slot_ptr + _STEP, step + 1, mask=(fooled | over) == 0)
        tl.store(pulled_ptr + row, fooled, mask=over == 0)
    else:
        tl.store(pulled_ptr + row, 1, mask=fooled & (over == 0))


@triton.jit
def mixing(a1, a2, alpha_max, DTYPE: tl.constexpr):
    """alpha, the share of the clean point's projection."""
    a1, a2 = tl.maximum(a1, _LEAST_LENGTH), tl.maximum(a2, _LEAST_LENGTH)
    return tl.minimum(tl.maximum(divide(a1, a1 + a2, DTYPE), 0.0), alpha_max)


@triton.jit
def mixed(x_adv, d1, x, d2, alpha, eta, lo, hi):
    """clip((x_adv + eta * d1) * (1 - alpha) + (x + eta * d2) * alpha)."""
    moved = (x_adv + eta * d1) * (1.0 - alpha) + (x + eta * d2) * alpha
    return tl.minimum(tl.maximum(moved, lo), hi)
