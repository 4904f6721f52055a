"""What the L2 steps share: a norm that cannot underflow, the step's factor, ball and box."""

import triton
import triton.language as tl

from ..rounding import clamp_keeping_nan, divide


@triton.jit
def unit_scale(largest, DTYPE: tl.constexpr):
    """The power of two that brings `largest` into [1, 4), at most 2^127 (2^1023 in fp64).

    Squares of gradients near 1e-30 underflow in fp32; scaling by a power of two rounds nothing.
    """
    if DTYPE == tl.float32:
        exponent = largest.to(tl.int32, bitcast=True) & 0x7F800000
        scale = tl.maximum(0x7F000000 - exponent, 0x00800000).to(tl.float32, bitcast=True)
    else:
        exponent = largest.to(tl.int64, bitcast=True) & 0x7FF0000000000000
        least = tl.full([], 0x0010000000000000, tl.int64)
        scale = tl.maximum(0x7FE0000000000000 - exponent, least).to(tl.float64, bitcast=True)
    return scale


@triton.jit
def step_factor(step, norm, guard, DTYPE: tl.constexpr):
    """step / (norm + guard); 0 where both are 0, and where norm is infinite."""
    length = norm + guard
    return tl.where(length > 0, divide(step, tl.where(length > 0, length, 1.0), DTYPE), 0.0)


@triton.jit
def move_and_project_l2(x_adv, move, x, norm, eps, lo, hi, DTYPE: tl.constexpr):
    """clamp(x + u * min(1, eps / norm), lo, hi), where u = x_adv - x + move and norm = ||u||_2.

    Inside the ball it is x_adv + move: a zero step changes no bit.
    """
    outside = norm > eps
    factor = divide(tl.where(outside, eps, 1.0), tl.where(outside, norm, 1.0), DTYPE)
    moved = tl.where(outside, x + (x_adv - x + move) * factor, x_adv + move)
    return clamp_keeping_nan(moved, lo, hi)
