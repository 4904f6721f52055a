"""Sums and exponentials in loops, written so that LLVM makes vectors of them.

A sum has eight partial ones, whatever the processor: its order depends on the row's length alone.
"""

import math

import numpy as np

from fastadv.ops.loops import inner

_SHIFT = np.float32(1.5 * 2**23)  # adding it rounds to an integer, which its last bits then are
_SHIFT_BITS = _SHIFT.view(np.int32)
_LOG2_E = np.float32(1.44269504088896341)
_LN2_HIGH = np.float32(0.693359375)  # exact times the integers up to 150
_LN2_LOW = np.float32(-2.12194440e-4)
_LEAST = np.float32(-105.0)  # of which exp is 0
_C0, _C1, _C2, _C3, _C4, _C5 = (  # (exp(r) - 1 - r) / r^2 within |r| <= ln(2) / 2, as in Cephes
    np.float32(c)
    for c in (
        5.0000001201e-1,
        1.6666665459e-1,
        4.1665795894e-2,
        8.3334519073e-3,
        1.3981999507e-3,
        1.9875691500e-4,
    )
)
_ONE = np.float32(1.0)
_EXPONENT_OF_ONE, _MANTISSA_BITS = np.int32(127), np.int32(23)


@inner
def exp_of_float32(x):
    """exp of x <= 0, no NaN, within two units of the last place."""
    x = max(x, _LEAST)
    shifted = x * _LOG2_E + _SHIFT
    n = shifted - _SHIFT
    r = x - n * _LN2_HIGH - n * _LN2_LOW
    p = ((((_C5 * r + _C4) * r + _C3) * r + _C2) * r + _C1) * r + _C0
    power = np.int32(np.float32(shifted).view(np.int32) - _SHIFT_BITS)
    half = power >> np.int32(1)  # in two factors, since 2^-149 has no exponent of its own
    return (p * (r * r) + r + _ONE) * _power_of_two(half) * _power_of_two(power - half)


@inner
def _power_of_two(n):
    return np.int32(np.int32(n + _EXPONENT_OF_ONE) << _MANTISSA_BITS).view(np.float32)


@inner
def exp_of_float64(x):
    return math.exp(x)


def exp(x: float) -> float:
    """exp of x <= 0, no NaN, in the type of x. In loops only: `loop_compiler` knows both."""
    raise NotImplementedError("only compiled loops have it")


@inner
def total_of(values, at, count):
    """The sum of `count` values from `at`, added up in float64 and rounded once."""
    a = b = c = d = e = f = g = h = 0.0
    whole = count - count % 8
    for j in range(at, at + whole, 8):
        a += values[j]
        b += values[j + 1]
        c += values[j + 2]
        d += values[j + 3]
        e += values[j + 4]
        f += values[j + 5]
        g += values[j + 6]
        h += values[j + 7]
    rest = 0.0
    for j in range(at + whole, at + count):
        rest += values[j]
    return type(values[at])(((a + e) + (c + g)) + ((b + f) + (d + h)) + rest)


@inner
def largest_of(values, at, count):
    """The largest of `count` values >= 0 from `at`, none of them NaN; 0 of none."""
    zero = type(values[at])(0)
    a = b = c = d = e = f = g = h = zero
    whole = count - count % 8
    for j in range(at, at + whole, 8):
        a = values[j] if values[j] > a else a
        b = values[j + 1] if values[j + 1] > b else b
        c = values[j + 2] if values[j + 2] > c else c
        d = values[j + 3] if values[j + 3] > d else d
        e = values[j + 4] if values[j + 4] > e else e
        f = values[j + 5] if values[j + 5] > f else f
        g = values[j + 6] if values[j + 6] > g else g
        h = values[j + 7] if values[j + 7] > h else h
    for j in range(at + whole, at + count):
        a = values[j] if values[j] > a else a
    a, b, c, d = max(a, e), max(b, f), max(c, g), max(d, h)
    return max(max(a, c), max(b, d))


@inner
def squares_of(values, at, count):
    """The sum of the squares of `count` values from `at`, in float64."""
    a = b = c = d = e = f = g = h = 0.0
    whole = count - count % 8
    for j in range(at, at + whole, 8):
        a += float(values[j]) * float(values[j])
        b += float(values[j + 1]) * float(values[j + 1])
        c += float(values[j + 2]) * float(values[j + 2])
        d += float(values[j + 3]) * float(values[j + 3])
        e += float(values[j + 4]) * float(values[j + 4])
        f += float(values[j + 5]) * float(values[j + 5])
        g += float(values[j + 6]) * float(values[j + 6])
        h += float(values[j + 7]) * float(values[j + 7])
    rest = 0.0
    for j in range(at + whole, at + count):
        rest += float(values[j]) * float(values[j])
    return ((a + e) + (c + g)) + ((b + f) + (d + h)) + rest
