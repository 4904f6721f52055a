"""Which proposal of a slot the Square Attack accepts; device functions shared by its norms."""

import triton
import triton.language as tl

from .. import slots

_STEP = tl.constexpr(slots.STEP)
_SUCCESS_STEP = tl.constexpr(slots.SUCCESS_STEP)
_ACTIVE = tl.constexpr(slots.ACTIVE)
_FAULT = tl.constexpr(slots.FAULT)
_WIDTH = tl.constexpr(slots.WIDTH)
_FAULT_NAN_LOGITS = tl.constexpr(slots.FAULT_NAN_LOGITS)


@triton.jit
def is_active(slots_ptr, row):
    return tl.load(slots_ptr + row * _WIDTH + _ACTIVE) != 0


@triton.jit
def accept(
    loss_ptr, prediction_ptr, labels_ptr, best_loss_ptr, queries_ptr, wasted_ptr, slots_ptr,
    row, K, QUERIES,
):  # fmt: skip
    """(taken, accepted, cursor, fooled): the slot's state after its K evaluations.

    The first valid row that raises the loss or fools the model is taken (-1: none); accepted is its
    query, cursor the query from which to go on. Ends with a barrier: one thread stores scalars that
    every warp must have read before.
    """
    slot_ptr = slots_ptr + row * _WIDTH
    label = tl.load(labels_ptr + row)
    best = tl.load(best_loss_ptr + row)
    wasted = tl.load(wasted_ptr + row)
    fault = tl.load(slot_ptr + _FAULT)
    taken = tl.full([], -1, tl.int32)
    accepted = tl.full([], -1, tl.int32)
    last = QUERIES + tl.full([], -1, tl.int32)
    fooled = tl.full([], 0, tl.int32)
    for k in range(0, K):
        query = tl.load(queries_ptr + row * K + k)
        loss = tl.load(loss_ptr + row * K + k)
        wrong = tl.load(prediction_ptr + row * K + k) != label
        has_nan = loss != loss
        wrong = wrong & (has_nan == 0)
        valid = query < QUERIES
        first = valid & (taken < 0)
        takes = first & ((loss > best) | wrong)
        wasted += tl.where(valid & (taken >= 0), 1, 0)
        fault = fault | tl.where(first & has_nan, _FAULT_NAN_LOGITS, 0)
        best = tl.where(takes, loss, best)
        fooled = tl.where(takes & wrong, 1, fooled)
        last = tl.where(first, query, last)
        accepted = tl.where(takes, query, accepted)
        taken = tl.where(takes, k, taken)
    tl.debug_barrier()
    tl.store(best_loss_ptr + row, best)
    tl.store(wasted_ptr + row, wasted)
    tl.store(slot_ptr + _FAULT, fault)
    tl.store(slot_ptr + _SUCCESS_STEP, accepted + 1, mask=fooled != 0)
    tl.store(slot_ptr + _STEP, accepted + 1, mask=fooled != 0)
    tl.store(slot_ptr + _ACTIVE, 0, mask=fooled != 0)
    return taken, accepted, last + 1, fooled


@triton.jit
def schedule(slots_ptr, row, first, QUERIES):
    """STEP is the first of the next queries; a slot without any is finished."""
    slot_ptr = slots_ptr + row * _WIDTH
    tl.store(slot_ptr + _STEP, first)
    tl.store(slot_ptr + _ACTIVE, (first < QUERIES).to(tl.int32))
