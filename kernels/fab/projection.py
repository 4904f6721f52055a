"""Projection onto a hyperplane inside a box, without a sort; device functions.

With s the sign of w . t - b, every coordinate may move towards the bound at which s * w . t falls,
by at most its room r. The smallest d that lowers it by c = |w . t - b| is, with one level a row,
min(level, r) in L-infinity and min(level * |w|, r) in L2, where the sum of |w| * |d| is concave and
piecewise linear in the level: Newton's steps from the left only rise, and end when no coordinate
more reaches its bound. In L1 coordinates are filled by descending |w|: the level is the |w| of the
last one, found by bisection on its bits, and `rest` what is left for those that tie with it.
Source: Croce and Hein 2020, arXiv:1907.02044, section 2.2.
"""

import triton
import triton.language as tl

from ..rounding import divide, root

_LEAST_WEIGHT = tl.constexpr(1e-8)  # the authors': in L2 and L1, up to it none moves
# no bound is farther; finite, because 0 * inf is not 0, and its product with a weight is, too
_TOP = tl.constexpr(1e30)


@triton.jit
def bits_of(value, DTYPE: tl.constexpr):
    """The bits of value >= 0 as an integer, which grows as value does."""
    if DTYPE == tl.float32:
        bits = value.to(tl.int32, bitcast=True)
    else:
        bits = value.to(tl.int64, bitcast=True)
    return bits


@triton.jit
def finite_or_zero(value):
    return tl.where(tl.abs(value) < float("inf"), value, 0.0)


@triton.jit
def weight_and_room(t, w, offset, lo, hi, NORM: tl.constexpr):
    """(|w|, bound - t): both 0 where a coordinate may not move. offset: w . t - b."""
    weight = tl.abs(w)
    if NORM == "linf":
        moves = weight > 0
    else:
        moves = weight > _LEAST_WEIGHT
    upwards = tl.where(offset < 0, w > 0, w < 0)
    room = tl.where(upwards, hi, lo) - tl.minimum(tl.maximum(t, lo), hi)
    return tl.where(moves, weight, 0.0), tl.where(moves, room, 0.0)


@triton.jit
def rising_parts(weight, room, level, NORM: tl.constexpr):
    """(slope, work): what rises with the level, and what the coordinates at their bounds give."""
    size = tl.abs(room)
    if NORM == "linf":
        opened = size > level
        slope = tl.where(opened, weight, 0.0)
    else:
        opened = size > level * weight
        slope = tl.where(opened, weight * weight, 0.0)
    return slope, tl.where(opened | (weight <= 0), 0.0, weight * size)


@triton.jit
def risen_level(level, slope, work, need, DTYPE: tl.constexpr):
    """The level that reaches `need` if no more coordinates meet their bounds; not below `level`."""
    risen = divide(need - work, tl.where(slope > 0, slope, 1.0), DTYPE)
    risen = tl.where(slope > 0, tl.minimum(risen, _TOP), _TOP)
    return tl.where(risen > level, risen, level)


@triton.jit
def gain_above(weight, room, least_bits, DTYPE: tl.constexpr):
    """weight * room where the bits of the weight reach `least_bits` (at least 1)."""
    filled = bits_of(weight, DTYPE) >= least_bits
    return tl.where(filled & (weight > 0), weight * tl.abs(room), 0.0)


@triton.jit
def bisected(low, high, middle, gained, need):
    """(low, high) after the gain at `middle` is known: low is the largest that reaches `need`."""
    enough = gained >= need
    return tl.where(enough, middle, low), tl.where(enough, high, middle)


@triton.jit
def tied_share(weight, room, level, rest):
    """What those that tie with the last weight may give, no more than the rest: it stays finite."""
    tied = (weight == level) & (weight > 0)
    return tl.where(tied, tl.minimum(weight * tl.abs(room), rest), 0.0)


@triton.jit
def displacement(weight, room, level, rest, before, NORM: tl.constexpr, DTYPE: tl.constexpr):
    """d, given level and rest; before: the exclusive sum of `tied_share` over the row, L1 only."""
    size = tl.abs(room)
    if NORM == "linf":
        size = tl.minimum(level, size)
    elif NORM == "l2":
        size = tl.minimum(level * weight, size)
    else:
        tied = (weight == level) & (weight > 0)
        partial = divide(rest - before, tl.where(tied, weight, 1.0), DTYPE)
        partial = tl.minimum(tl.maximum(partial, 0.0), size)
        size = tl.where(weight > level, size, tl.where(tied, partial, 0.0))
    return tl.where(room < 0, -size, size)


@triton.jit
def norm_part(d, NORM: tl.constexpr):
    """What of d is added up, or of which the largest is taken, to make its norm."""
    if NORM == "l2":
        part = d * d
    else:
        part = tl.abs(d)
    return part


@triton.jit
def joined(total, part, NORM: tl.constexpr):
    if NORM == "linf":
        total = tl.maximum(total, part)
    else:
        total += part
    return total


@triton.jit
def norm_of(parts, NORM: tl.constexpr, DTYPE: tl.constexpr):
    """The norm of a row from the `norm_part`s of its lanes."""
    if NORM == "linf":
        value = tl.max(parts, 0)
    elif NORM == "l2":
        value = root(tl.sum(parts, 0), DTYPE)
    else:
        value = tl.sum(parts, 0)
    return value


@triton.jit
def project_row(t, w, offset, lo, hi, NORM: tl.constexpr, DTYPE: tl.constexpr):
    """d of one row in registers, padded with w = 0; offset, lo and hi are DTYPE scalars."""
    need = tl.abs(offset)
    weight, room = weight_and_room(t, w, offset, lo, hi, NORM)
    level = tl.full([], 0.0, DTYPE)
    rest = level
    before = tl.zeros_like(weight)
    if NORM == "l1":
        bits = bits_of(weight, DTYPE)
        one = bits_of(level, DTYPE) + 1
        enough = tl.sum(gain_above(weight, room, one, DTYPE), 0) >= need
        low = tl.where(enough, one, 0)
        high = tl.where(enough, tl.max(bits, 0) + 1, one)
        while high - low > 1:
            middle = low + (high - low) // 2
            gained = tl.sum(gain_above(weight, room, middle, DTYPE), 0)
            low, high = bisected(low, high, middle, gained, need)
        level = low.to(DTYPE, bitcast=True)
        full = tl.sum(gain_above(weight, room, low + 1, DTYPE), 0)
        rest = tl.maximum(need - full, 0.0)
        share = tied_share(weight, room, level, rest)
        before = tl.cumsum(share, 0) - share
    else:
        rising = 1
        while rising > 0:
            slope, work = rising_parts(weight, room, level, NORM)
            risen = risen_level(level, tl.sum(slope, 0), tl.sum(work, 0), need, DTYPE)
            rising = (risen > level).to(tl.int32)
            level = risen
    return displacement(weight, room, level, rest, before, NORM, DTYPE)
