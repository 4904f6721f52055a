"""FAB's step of rows that do not fit on chip: one program a sample loops over chunks of its row."""

import triton
import triton.language as tl

from .long import load_pair, search_row
from .projection import displacement, joined, norm_of, norm_part, tied_share, weight_and_room
from .verdict import is_active, judge_distance, load_verdict, mixed, mixing, store_verdict


@triton.jit
def _displaced(
    t, w, offset, lo, hi, level, rest, given,
    NORM: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """(d, given) of one chunk; given: what the ties before it have taken, L1 only."""
    weight, room = weight_and_room(t, w, offset, lo, hi, NORM)
    before = tl.zeros([BLOCK], DTYPE)
    if NORM == "l1":
        share = tied_share(weight, room, level, rest)
        before = given + tl.cumsum(share, 0) - share
        given += tl.sum(share, 0)
    return displacement(weight, room, level, rest, before, NORM, DTYPE), given


@triton.jit
def fab_step_long_kernel(
    x_adv_ptr, closest_ptr, grad_ptr, x_ptr, difference_ptr, prediction_ptr, labels_ptr,
    distance_ptr, pulled_ptr, slots_ptr, eps_ptr,
    lo: "fp64", hi: "fp64", alpha_max: "fp64", eta: "fp64", beta: "fp64",  # noqa: F821
    steps, D,
    NORM: tl.constexpr, STOP_EARLY: tl.constexpr, MOVES: tl.constexpr, DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """`fab_step_kernel` with the row read anew at each turn of its searches; written once, last."""
    row = tl.program_id(0).to(tl.int64)
    start_ptr = x_adv_ptr + row * D
    clean_ptr = x_ptr + row * D
    offset = tl.arange(0, BLOCK)
    low = tl.full([], lo, DTYPE)
    high = tl.full([], hi, DTYPE)
    if is_active(slots_ptr, row):
        fooled, over, known, difference = load_verdict(
            slots_ptr, difference_ptr, prediction_ptr, labels_ptr, pulled_ptr, row, steps, DTYPE
        )
        if fooled:
            parts = tl.zeros([BLOCK], DTYPE)
            for start in range(0, D, BLOCK):
                e = start + offset
                x_adv = tl.load(start_ptr + e, mask=e < D, other=0.0).to(DTYPE)
                x = tl.load(clean_ptr + e, mask=e < D, other=0.0).to(DTYPE)
                parts = joined(parts, norm_part(x_adv - x, NORM), NORM)
            closer, over = judge_distance(
                slots_ptr, distance_ptr, eps_ptr, row, norm_of(parts, NORM, DTYPE), over,
                STOP_EARLY, DTYPE,
            )  # fmt: skip
            for start in range(0, D, BLOCK):
                e = start + offset
                stored = tl.load(start_ptr + e, mask=e < D, other=0.0)
                x = tl.load(clean_ptr + e, mask=e < D, other=0.0).to(DTYPE)
                pulled = x + tl.full([], beta, DTYPE) * (stored.to(DTYPE) - x)
                tl.store(closest_ptr + row * D + e, stored, mask=e < tl.where(closer, D, 0))
                pulled = pulled.to(x_adv_ptr.dtype.element_ty)
                tl.store(start_ptr + e, pulled, mask=e < tl.where(over, 0, D))
        elif MOVES:
            if over == 0:
                w_ptr = grad_ptr + row * D
                products = tl.zeros([BLOCK], DTYPE)
                for start in range(0, D, BLOCK):
                    e = start + offset
                    x_adv, w = load_pair(start_ptr, w_ptr, e, D, known, DTYPE)
                    x = tl.load(clean_ptr + e, mask=e < D, other=0.0).to(DTYPE)
                    products += w * (x_adv - x)
                clean = difference - tl.sum(products, 0)
                clean = tl.where(clean == clean, clean, 0.0)
                level1, rest1 = search_row(
                    start_ptr, w_ptr, D, known, difference, low, high, NORM, DTYPE, BLOCK
                )
                level2, rest2 = search_row(
                    clean_ptr, w_ptr, D, known, clean, low, high, NORM, DTYPE, BLOCK
                )
                parts1 = tl.zeros([BLOCK], DTYPE)
                parts2 = tl.zeros([BLOCK], DTYPE)
                given1 = tl.full([], 0.0, DTYPE)
                given2 = tl.full([], 0.0, DTYPE)
                for start in range(0, D, BLOCK):
                    e = start + offset
                    x_adv, w = load_pair(start_ptr, w_ptr, e, D, known, DTYPE)
                    x = tl.load(clean_ptr + e, mask=e < D, other=0.0).to(DTYPE)
                    d1, given1 = _displaced(
                        x_adv, w, difference, low, high, level1, rest1, given1, NORM, DTYPE, BLOCK
                    )
                    d2, given2 = _displaced(
                        x, w, clean, low, high, level2, rest2, given2, NORM, DTYPE, BLOCK
                    )
                    parts1 = joined(parts1, norm_part(d1, NORM), NORM)
                    parts2 = joined(parts2, norm_part(d2, NORM), NORM)
                a1 = norm_of(parts1, NORM, DTYPE)
                a2 = norm_of(parts2, NORM, DTYPE)
                alpha = mixing(a1, a2, tl.full([], alpha_max, DTYPE), DTYPE)
                given1 = tl.full([], 0.0, DTYPE)
                given2 = tl.full([], 0.0, DTYPE)
                for start in range(0, D, BLOCK):
                    e = start + offset
                    x_adv, w = load_pair(start_ptr, w_ptr, e, D, known, DTYPE)
                    x = tl.load(clean_ptr + e, mask=e < D, other=0.0).to(DTYPE)
                    d1, given1 = _displaced(
                        x_adv, w, difference, low, high, level1, rest1, given1, NORM, DTYPE, BLOCK
                    )
                    d2, given2 = _displaced(
                        x, w, clean, low, high, level2, rest2, given2, NORM, DTYPE, BLOCK
                    )
                    moved = mixed(x_adv, d1, x, d2, alpha, tl.full([], eta, DTYPE), low, high)
                    tl.store(start_ptr + e, moved.to(x_adv_ptr.dtype.element_ty), mask=e < D)
        store_verdict(slots_ptr, pulled_ptr, row, fooled, over, known, MOVES)
