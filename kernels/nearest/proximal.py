"""One iteration of PDPGD's proximal step, on elements of a row; device functions.

A row's iterates are made anew from its start in every pass: z is d at first, and each turn gives
clip(prox(z - h * (z - d))), where prox needs one number of the whole row, the turn's level.
"""

import triton
import triton.language as tl

from ..rounding import clamp_keeping_nan, divide, root

_GUARD = tl.constexpr(1e-8)  # Adam's
_FAR = tl.constexpr(1e9)  # of a size whose fourth power is finite; "l2/3" does not change it


@triton.jit
def sigmoid(log, DTYPE: tl.constexpr):
    """1 / (1 + exp(-log)), which is also the slope of log(1 + exp(log))."""
    small = tl.exp(-tl.abs(log))
    return divide(tl.where(log < 0, small, 1.0), 1.0 + small, DTYPE)


@triton.jit
def load_after_adam(
    x_adv_ptr, x_ptr, mean_ptr, square_ptr, e, D, factor, inverse, lo, hi, DTYPE: tl.constexpr
):  # fmt: skip
    """(x, d, h) of elements e of a row: d = clip(x_adv - factor * mean / h) - x, where
    h = sqrt(square) * inverse + 1e-8; beyond the row all are 0 but h."""
    mask = e < D
    x_adv = tl.load(x_adv_ptr + e, mask=mask, other=0.0).to(DTYPE)
    x = tl.load(x_ptr + e, mask=mask, other=0.0).to(DTYPE)
    mean = tl.load(mean_ptr + e, mask=mask, other=0.0)
    square = tl.load(square_ptr + e, mask=mask, other=0.0)
    h = root(square, DTYPE) * inverse + _GUARD
    moved = x + ((x_adv - x) - factor * divide(mean, h, DTYPE))
    d = clamp_keeping_nan(moved, lo, hi) - x
    return x, tl.where(mask, d, 0.0), h


@triton.jit
def level_of(levels, turn, PULL: tl.constexpr, LANES: tl.constexpr):
    """The level of a turn: one of the lanes of `levels` in L2 and L-infinity, else the same."""
    if PULL != "l2" and PULL != "linf":
        level = levels
    else:
        level = tl.sum(tl.where(tl.arange(0, LANES) == turn, levels, 0.0), 0)
    return level


@triton.jit
def _shrunk(v, scale, DTYPE: tl.constexpr):
    """The larger minimum of (z - v)^2 / 2 + scale^(4/3) |z|^(2/3), else 0, as in the reference."""
    size = divide(tl.abs(v), scale, DTYPE)
    square = size * size
    rest = square * square * (1.0 / 256.0) - 8.0 / 729.0
    kept = (rest >= 0) & (size < _FAR)
    cube = tl.where(kept, square * 0.0625 + root(tl.maximum(rest, 0.0), DTYPE), 1.0)
    third = tl.exp(tl.log(cube) * (1.0 / 3.0))
    third = (2.0 * third + divide(cube, third * third, DTYPE)) * (1.0 / 3.0)
    doubled = 2.0 * (third + divide(tl.full([], 2.0 / 9.0, DTYPE), third, DTYPE))
    width = root(doubled, DTYPE)
    whole = width + root(tl.maximum(divide(2.0 * size, width, DTYPE) - doubled, 0.0), DTYPE)
    found = tl.where(kept, whole * whole * whole * 0.125 * scale, tl.abs(v))
    found = tl.where(rest >= 0, found, 0.0)
    return tl.where(v < 0, -found, found)


@triton.jit
def settled(
    z, d, h, x, level, lo, hi, PULL: tl.constexpr, DTYPE: tl.constexpr
):  # fmt: skip
    """z after one more turn."""
    v = z - h * (z - d)
    if PULL == "l1":
        kept = tl.maximum(tl.abs(v) - level, 0.0)
        v = tl.where(v < 0, -kept, kept)
    elif PULL == "l0":
        v = tl.where(tl.abs(v) >= level, v, 0.0)
    elif PULL == "l2/3":
        v = _shrunk(v, level, DTYPE)
    elif PULL == "l2":
        v *= level
    else:
        v = tl.minimum(tl.maximum(v, -level), level)
    return clamp_keeping_nan(x + v, lo, hi) - x


@triton.jit
def after_turns(
    d, h, x, levels, count, lo, hi, PULL: tl.constexpr, LANES: tl.constexpr, DTYPE: tl.constexpr
):  # fmt: skip
    """z after `count` turns from d."""
    z = d
    for turn in range(count):
        z = settled(z, d, h, x, level_of(levels, turn, PULL, LANES), lo, hi, PULL, DTYPE)
    return z
