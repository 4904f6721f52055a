"""The largest elements of a row, one after another, ties in ascending column order.

EXTENT is C, or BLOCK as a constant where one block holds the row: the loop is then unrolled, and
the compiler keeps the block in registers from one pass over the row to the next.
"""

import triton
import triton.language as tl


@triton.jit
def load_chunk(row_ptr, start, C, DTYPE: tl.constexpr, BLOCK: tl.constexpr):
    """Columns start .. start + BLOCK and their values, -inf beyond the end of the row."""
    column = start + tl.arange(0, BLOCK)
    return column, tl.load(row_ptr + column, mask=column < C, other=float("-inf")).to(DTYPE)


@triton.jit
def _empty_lanes(C, DTYPE: tl.constexpr, BLOCK: tl.constexpr):
    """(-inf, C): what every element of the row precedes, -inf too, but no padding does."""
    return tl.full([BLOCK], float("-inf"), DTYPE), tl.zeros([BLOCK], tl.int32) + C


@triton.jit
def _first(best, best_column, C):
    value = tl.max(best, 0)
    return value, tl.min(tl.where(best == value, best_column, C), 0)


@triton.jit
def leading(row_ptr, C, EXTENT, DTYPE: tl.constexpr, BLOCK: tl.constexpr):
    """(value, column) of the first largest element; (inf, column - C) of the first NaN if any."""
    best, best_column = _empty_lanes(C, DTYPE, BLOCK)
    for start in range(0, EXTENT, BLOCK):
        column, z = load_chunk(row_ptr, start, C, DTYPE, BLOCK)
        column = tl.where(z == z, column, column - C)
        z = tl.where(z == z, z, float("inf"))
        better = (z > best) | ((z == best) & (column < best_column))
        best = tl.where(better, z, best)
        best_column = tl.where(better, column, best_column)
    return _first(best, best_column, C)


@triton.jit
def following(row_ptr, C, EXTENT, value, at, DTYPE: tl.constexpr, BLOCK: tl.constexpr):
    """(value, column) of the element that comes after (value, at) in a row without NaNs."""
    best, best_column = _empty_lanes(C, DTYPE, BLOCK)
    for start in range(0, EXTENT, BLOCK):
        column, z = load_chunk(row_ptr, start, C, DTYPE, BLOCK)
        after = (z < value) | ((z == value) & (column > at))
        better = after & ((z > best) | ((z == best) & (column < best_column)))
        best = tl.where(better, z, best)
        best_column = tl.where(better, column, best_column)
    return _first(best, best_column, C)
