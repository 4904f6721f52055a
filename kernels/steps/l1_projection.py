"""Projection onto the L1 ball and the box together, and top-k, without a sort; device functions.

The nearest point z to x + u with ||z - x||_1 <= eps and lo <= z <= hi is, with w the room that u's
sign leaves in the box, z - x = sign(u) * clamp(|u| - t, 0, w): t = 0 if that is within eps, else
sum(clamp(|u| - t, 0, w)) = eps (Croce and Hein 2021, arXiv:2103.01208, proposition 2.1). The sum
falls with t and is piecewise linear, so t is found by Newton steps inside a bracket.
"""

import triton
import triton.language as tl

from ..rounding import divide


@triton.jit
def float_bits(value, DTYPE: tl.constexpr):
    """The bits of value >= 0 as an integer, which grows as value does."""
    if DTYPE == tl.float32:
        bits = value.to(tl.int32, bitcast=True)
    else:
        bits = value.to(tl.int64, bitcast=True)
    return bits


@triton.jit
def l1_room(u, x, lo, hi):
    """How far x may move along sign(u) within [lo, hi]; 0 outside of it."""
    return tl.maximum(tl.where(u >= 0, hi - x, x - lo), 0.0)


@triton.jit
def l1_kept(magnitude, room, threshold):
    """(clamp(magnitude - threshold, 0, room), 1 where it falls as threshold grows)."""
    excess = magnitude - threshold
    kept = tl.minimum(tl.maximum(excess, 0.0), room)
    falling = (excess > 0) & (excess <= room)
    return kept, tl.where(falling, 1.0, 0.0).to(magnitude.dtype)


@triton.jit
def l1_search_start(DTYPE: tl.constexpr):
    """(guess, low, high, mass, slope, turn) before the first turn, which tries t = 0."""
    zero = tl.full([], 0.0, DTYPE)
    bits = float_bits(zero, DTYPE)
    return bits, bits, float_bits(tl.full([], float("inf"), DTYPE), DTYPE), zero, zero, 0


@triton.jit
def l1_search(guess, low, high, mass, slope, turn, new_mass, new_slope, eps, DTYPE: tl.constexpr):
    """One turn of the search for t, given the mass and the slope at `guess`.

    Thresholds are bits; mass(low) > eps >= mass(high), and `mass` and `slope` belong to low. The
    next guess is -1 at the end. Newton steps aim one bit short, to stay on the side of low; every
    fourth turn bisects, so that no row takes more than 4 * 31 turns (5 to 8 are usual).
    """
    over = new_mass > eps
    # from this side the correction at the end makes up for what is left
    close = eps * (2.3841858e-07 if DTYPE == tl.float32 else 4.440892098500626e-16)
    hit = ((new_mass >= eps) & (new_mass - eps <= close)) | (eps <= 0)
    high = tl.where(over, high, guess)
    low = tl.where(over | hit, guess, low)
    mass = tl.where(over | hit, new_mass, mass)
    slope = tl.where(over | hit, new_slope, slope)
    ascent = divide(tl.maximum(mass - eps, 0.0), tl.maximum(slope, 1.0), DTYPE)
    newton = float_bits(low.to(DTYPE, bitcast=True) + ascent, DTYPE) - 1
    bisect = (slope == 0) | (newton >= high) | ((turn % 4 == 3) & (newton > low))
    guess = tl.where(bisect, low + (high - low) // 2, newton)
    guess = tl.where(hit | (guess <= low) | (guess >= high), -1, guess)
    return guess, low, high, mass, slope, turn + 1


@triton.jit
def l1_search_end(low, high, mass, slope, eps, DTYPE: tl.constexpr):
    """(t, correction, outside): subtract t, then the correction, which is below t's resolution.

    t alone may be wrong by half a bit, which the sum over D elements would count D times.
    """
    outside = (mass > eps) | (low > 0)
    empty = eps <= 0
    t = low.to(DTYPE, bitcast=True)
    reach = high.to(DTYPE, bitcast=True) - t
    correction = divide(tl.maximum(mass - eps, 0.0), tl.maximum(slope, 1.0), DTYPE)
    correction = tl.where(empty, 0.0, tl.minimum(correction, reach))
    return tl.where(empty, float("inf"), t), correction, outside


@triton.jit
def l1_threshold(magnitude, room, eps, DTYPE: tl.constexpr):
    """(t, correction, outside) of one row in registers; pad with magnitude 0.

    eps is a DTYPE scalar. The projection is min(max(magnitude - t - correction, 0), room) with the
    sign of u; outside is False, and t 0, where the row meets the budget as it is.
    """
    guess, low, high, mass, slope, turn = l1_search_start(DTYPE)
    while guess >= 0:
        kept, falling = l1_kept(magnitude, room, guess.to(DTYPE, bitcast=True))
        guess, low, high, mass, slope, turn = l1_search(
            guess, low, high, mass, slope, turn, tl.sum(kept, 0), tl.sum(falling, 0), eps, DTYPE
        )
    return l1_search_end(low, high, mass, slope, eps, DTYPE)


@triton.jit
def l1_shrunk(u, x, t, correction, lo, hi):
    """The projected u: sign(u) * clamp(|u| - t - correction, 0, room)."""
    kept = tl.minimum(tl.maximum(tl.abs(u) - t - correction, 0.0), l1_room(u, x, lo, hi))
    return tl.where(u < 0, -kept, kept)


@triton.jit
def project_l1_row(u, x, eps, lo, hi, DTYPE: tl.constexpr):
    """(z, outside): x + z is nearest to x + u in the eps-ball around x and in [lo, hi].

    One row in registers, padded with u = 0; eps, lo and hi are DTYPE scalars. Add and clamp as
    clamp(x + z, lo, hi): x + room may round past a bound.
    """
    t, correction, outside = l1_threshold(tl.abs(u), l1_room(u, x, lo, hi), eps, DTYPE)
    return l1_shrunk(u, x, t, correction, lo, hi), outside


@triton.jit
def kept_count(sparsity, D, DTYPE: tl.constexpr):
    """How many elements a sparse step keeps: D - min(floor((1 - sparsity) * D), D - 1)."""
    dropped = tl.floor((1.0 - sparsity) * (tl.full([], 1, DTYPE) * D))
    last = tl.full([], 1, DTYPE) * (D - 1)
    return D - tl.minimum(tl.maximum(dropped, 0.0), last).to(tl.int32)


@triton.jit
def least_kept_bits(bits, count):
    """(bits of the count-th largest element, or 1 if fewer are above 0, how many reach it).

    By bisection on the bits of one row in registers; ties are all kept, zeros never.
    """
    low = tl.full([], 1, bits.dtype)
    found = tl.sum((bits >= low).to(tl.int32), 0)
    high = tl.max(bits, 0) + 1
    while (found > count) & (high - low > 1):
        middle = low + (high - low) // 2
        reach = tl.sum((bits >= middle).to(tl.int32), 0)
        enough = reach >= count
        low = tl.where(enough, middle, low)
        found = tl.where(enough, reach, found)
        high = tl.where(enough, high, middle)
    return low, found


@triton.jit
def sparse_move(d, bits, least, found, step, DTYPE: tl.constexpr):
    """step * sign(d) / found where d is among the kept."""
    amount = divide(step, tl.maximum(found, 1).to(DTYPE), DTYPE)
    kept = bits >= least
    return tl.where(kept & (d > 0), amount, 0.0) - tl.where(kept & (d < 0), amount, 0.0)
