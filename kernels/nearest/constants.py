"""How C&W's attacks choose the constant of a sample's next round."""

import triton
import triton.language as tl

_LARGEST = tl.constexpr(1e10)


@triton.jit
def bisected(constant, under, above, number, ends, found, rounds, increase):
    """(constant, under, above) after a round that `ends`: the middle of the largest that failed and
    the least that worked; constant * increase while none has."""
    above = tl.where(ends & found, tl.minimum(above, constant), above)
    under = tl.where(ends & (found == 0), tl.maximum(under, constant), under)
    middle = (under + above) * 0.5
    new = tl.where(above < float("inf"), middle, constant * increase)
    final = (rounds >= 10) & (number + 2 >= rounds)
    new = tl.where(final, tl.minimum(above, _LARGEST), new)
    return tl.where(ends, new, constant), under, above


@triton.jit
def next_constant(
    constant, under, above, level, nearest, number, ends, found, rounds, increase, decrease,
    NORM: tl.constexpr,
):  # fmt: skip
    """(constant, under, above, level) of the next point; nearest: a distance relative to unit."""
    if NORM == "l2":
        new, under, above = bisected(
            constant, under, above, number, ends, found, rounds, increase
        )
    else:
        lower = tl.minimum(level, nearest) * decrease
        level = tl.where(ends & found, lower, level)
        new = tl.where(ends & (found == 0), constant * increase, constant)
    return new, under, above, level
