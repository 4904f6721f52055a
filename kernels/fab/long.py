"""What FAB needs of rows that do not fit on chip: searches that read the row anew at each turn."""

import triton
import triton.language as tl

from .projection import (
    bisected,
    bits_of,
    finite_or_zero,
    gain_above,
    risen_level,
    rising_parts,
    weight_and_room,
)


@triton.jit
def load_pair(t_ptr, w_ptr, e, D, known, DTYPE: tl.constexpr):
    """(t, w) of elements e: w with 0 for what is not finite, and all 0 where `known` is False."""
    t = tl.load(t_ptr + e, mask=e < D, other=0.0).to(DTYPE)
    w = tl.load(w_ptr + e, mask=e < tl.where(known, D, 0), other=0.0).to(DTYPE)
    return t, finite_or_zero(w)


@triton.jit
def _gain_of_row(
    t_ptr, w_ptr, D, known, offset, lo, hi, least_bits,
    DTYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    total = tl.zeros([BLOCK], DTYPE)
    for start in range(0, D, BLOCK):
        t, w = load_pair(t_ptr, w_ptr, start + tl.arange(0, BLOCK), D, known, DTYPE)
        weight, room = weight_and_room(t, w, offset, lo, hi, "l1")
        total += gain_above(weight, room, least_bits, DTYPE)
    return tl.sum(total, 0)


@triton.jit
def search_row(
    t_ptr, w_ptr, D, known, offset, lo, hi,
    NORM: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """(level, rest) of one row, as `project_row` finds them."""
    need = tl.abs(offset)
    level = tl.full([], 0.0, DTYPE)
    rest = level
    if NORM == "l1":
        one = bits_of(level, DTYPE) + 1
        heaviest = tl.zeros([BLOCK], one.dtype)
        for start in range(0, D, BLOCK):
            t, w = load_pair(t_ptr, w_ptr, start + tl.arange(0, BLOCK), D, known, DTYPE)
            weight, room = weight_and_room(t, w, offset, lo, hi, NORM)
            heaviest = tl.maximum(heaviest, bits_of(weight, DTYPE))
        gained = _gain_of_row(t_ptr, w_ptr, D, known, offset, lo, hi, one, DTYPE, BLOCK)
        enough = gained >= need
        low = tl.where(enough, one, 0)
        high = tl.where(enough, tl.max(heaviest, 0) + 1, one)
        while high - low > 1:
            middle = low + (high - low) // 2
            gained = _gain_of_row(t_ptr, w_ptr, D, known, offset, lo, hi, middle, DTYPE, BLOCK)
            low, high = bisected(low, high, middle, gained, need)
        level = low.to(DTYPE, bitcast=True)
        full = _gain_of_row(t_ptr, w_ptr, D, known, offset, lo, hi, low + 1, DTYPE, BLOCK)
        rest = tl.maximum(need - full, 0.0)
    else:
        rising = 1
        while rising > 0:
            slopes = tl.zeros([BLOCK], DTYPE)
            works = tl.zeros([BLOCK], DTYPE)
            for start in range(0, D, BLOCK):
                t, w = load_pair(t_ptr, w_ptr, start + tl.arange(0, BLOCK), D, known, DTYPE)
                weight, room = weight_and_room(t, w, offset, lo, hi, NORM)
                slope, work = rising_parts(weight, room, level, NORM)
                slopes += slope
                works += work
            risen = risen_level(level, tl.sum(slopes, 0), tl.sum(works, 0), need, DTYPE)
            rising = (risen > level).to(tl.int32)
            level = risen
    return level, rest
