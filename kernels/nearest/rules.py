"""How DDN and FMN choose the radius of their next point, and bring the point there."""

import triton
import triton.language as tl

from ..fab.projection import finite_or_zero, norm_part
from ..rounding import divide


@triton.jit
def dual_part(g, NORM: tl.constexpr):
    """`norm_part` of the dual norm, in which a gradient is measured."""
    if NORM == "linf":
        part = norm_part(g, "l1")
    elif NORM == "l2":
        part = norm_part(g, "l2")
    else:
        part = norm_part(g, "linf")
    return part


@triton.jit
def next_radius(
    radius, limit, fooled, nearest, length, gap, gamma,
    RULE: tl.constexpr, COUNTS: tl.constexpr,
):  # fmt: skip
    """The radius of the next point; gap: from the point to the boundary, as a linear model has it.

    DDN: a factor 1 - gamma after an adversarial point, 1 + gamma after another one. FMN: the same,
    but no more than `nearest` after an adversarial point, and to the boundary while none is known.
    """
    inner = radius * (1.0 - gamma)
    outer = radius * (1.0 + gamma)
    if COUNTS:  # whole entries, by one at least
        inner = tl.minimum(tl.minimum(radius - 1.0, tl.floor(inner)), nearest)
        inner = tl.maximum(inner, 0.0)
        outer = tl.maximum(radius + 1.0, tl.floor(outer))
    elif RULE == "fmn":
        inner = tl.minimum(inner, nearest)
        outer = tl.where(nearest < float("inf"), outer, length + gap)
    return tl.minimum(tl.where(fooled, inner, outer), limit)


@triton.jit
def length_part(d, NORM: tl.constexpr):
    """`norm_part`, which in L0 counts what is not 0."""
    if NORM == "l0":
        part = tl.where(d != 0, 1.0, 0.0).to(d.dtype)
    else:
        part = norm_part(d, NORM)
    return part


@triton.jit
def gap_of(loss, dual, scale, overshoot, DTYPE: tl.constexpr):
    """How far the boundary is, and beyond: (1 + overshoot) * |loss| / ||grad||; dual: that norm
    times scale. Infinite where there is no gradient."""
    steep = dual > 0
    gap = divide(tl.abs(loss) * scale, tl.where(steep, dual, 1.0), DTYPE)
    return tl.where(steep, gap * (1.0 + overshoot), float("inf"))


@triton.jit
def onto_sphere(radius, norm, DTYPE: tl.constexpr):
    """What a difference of this L2 norm is multiplied by; 1 where it is 0."""
    moved = norm > 0
    return divide(tl.where(moved, radius, 1.0), tl.where(moved, norm, 1.0), DTYPE)


@triton.jit
def load_slope(grad_ptr, e, D, x_adv, lo, hi, MINDS_BOUNDS: tl.constexpr, DTYPE: tl.constexpr):
    """The gradient of elements e of a row, 0 where it is not finite and, if asked, where an element
    lies at a bound that it points out of."""
    g = tl.load(grad_ptr + e, mask=e < D, other=0.0).to(DTYPE)
    g = finite_or_zero(g)
    if MINDS_BOUNDS:
        blocked = ((g > 0) & (x_adv >= hi)) | ((g < 0) & (x_adv <= lo))
        g = tl.where(blocked, 0.0, g)
    return g
