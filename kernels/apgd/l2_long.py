"""APGD's L2 step of rows that do not fit on chip, and the formulas that both lengths share."""

import triton
import triton.language as tl

from ..addressing import box_of, load_bounds, load_unit, movable_grad
from ..rounding import clamp_keeping_nan, divide, root
from .progress_step import is_active, misclassified, turn_of

_GUARD = tl.constexpr(1e-12)  # the authors': N(v) = v / (||v|| + 1e-12)


@triton.jit
def finite_factor(square, step, DTYPE: tl.constexpr):
    """(step / (||g|| + guard), whether ||g|| is finite), given ||g||^2."""
    norm = root(square, DTYPE)
    return divide(step, norm + tl.full([], _GUARD, DTYPE), DTYPE), norm < float("inf")


@triton.jit
def ball_factor(norm, eps, DTYPE: tl.constexpr):
    """min(eps, norm) / (norm + guard): 1 inside the ball but for tiny norms."""
    return divide(tl.minimum(eps, norm), norm + tl.full([], _GUARD, DTYPE), DTYPE)


@triton.jit
def ascended_offset(z, g, x, factor, finite):
    """z + step * N(g) - x; no step along a gradient whose norm is infinite."""
    return z + tl.where(finite, g, 0.0) * factor - x


@triton.jit
def with_momentum(z, u, x, previous, shrink, first, lo, hi):
    """The next iterate before its projection, minus x, given the ascended iterate x + u."""
    ascended = clamp_keeping_nan(x + u * shrink, lo, hi)
    share = tl.where(first, 1.0, 0.75).to(z.dtype)
    inertia = tl.where(first, 0.0, (z - previous) * 0.25)  # of the start iterate: undefined
    return z + (ascended - z) * share + inertia - x


@triton.jit
def squared(v, unit, DTYPE: tl.constexpr):
    """(v / unit)^2; unit: None where lengths have no units of their own."""
    if unit is not None:
        v = divide(v, unit, DTYPE)
    return v * v


@triton.jit
def unit_chunk(box_ptr, e, mask, D, BOX: tl.constexpr, DTYPE: tl.constexpr):
    """What elements e of a row are measured in, None without units."""
    unit = None
    if BOX == 3:
        unit = load_unit(box_ptr, e, mask, D, DTYPE)
    return unit


@triton.jit
def bounds_chunk(box_ptr, lo, hi, e, mask, D, BOX: tl.constexpr, DTYPE: tl.constexpr):
    """(lower, upper) of elements e of a row: `lo` and `hi` without a box."""
    if BOX:
        lo, hi = load_bounds(box_ptr, e, mask, D, DTYPE)
    return lo, hi


@triton.jit
def iterate_chunk(
    x_adv_ptr, x_best_ptr, grad_ptr, grad_best_ptr, box_ptr, e, mask, restore, D,
    BOX: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """(z, g) of elements e: where the step starts from, and the gradient there, in units of the
    elements."""
    if restore:
        z = tl.load(x_best_ptr + e, mask=mask, other=0.0)
        g = tl.load(grad_best_ptr + e, mask=mask, other=0.0)
    else:
        z = tl.load(x_adv_ptr + e, mask=mask, other=0.0)
        g = tl.load(grad_ptr + e, mask=mask, other=0.0)
    g = g.to(DTYPE)
    g = tl.where(g == g, g, 0.0)
    if BOX:
        g = movable_grad(g, box_ptr, e, mask, D, DTYPE)
    if BOX == 3:
        g *= load_unit(box_ptr, e, mask, D, DTYPE)
    return z, g


@triton.jit
def apgd_l2_long_kernel(
    x_adv_ptr, x_previous_ptr, x_best_ptr, grad_best_ptr, grad_ptr, x_ptr, x_hit_ptr,
    step_size_ptr, eps_ptr, slots_ptr, progress_ptr, correct_ptr, box_ptr,
    lo: "fp64", hi: "fp64", D,  # noqa: F821
    HIT: tl.constexpr, BOX: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One sample a program: a pass for each of the three norms, and one that writes."""
    row = tl.program_id(0).to(tl.int64)
    base = row * D
    offset = tl.arange(0, BLOCK)
    if is_active(slots_ptr, row):
        first, improved, restore = turn_of(slots_ptr, progress_ptr, row)
        step = tl.load(step_size_ptr + row).to(DTYPE)
        radius = tl.load(eps_ptr + row).to(DTYPE)
        low = tl.full([], lo, DTYPE)
        high = tl.full([], hi, DTYPE)
        if BOX:
            box_ptr = box_of(box_ptr, row, D, BOX)
        x_adv_ptr += base
        x_best_ptr += base
        grad_ptr += base
        grad_best_ptr += base
        x_ptr += base
        x_previous_ptr += base
        hit = first
        if HIT:
            hit = misclassified(correct_ptr, row)
            x_hit_ptr += base

        total = tl.zeros([BLOCK], DTYPE)
        for start in range(0, D, BLOCK):
            e = start + offset
            mask = e < D
            if improved:
                g = tl.load(grad_ptr + e, mask=mask)
                tl.store(x_best_ptr + e, tl.load(x_adv_ptr + e, mask=mask), mask=mask)
                tl.store(grad_best_ptr + e, g, mask=mask)
            if HIT:
                if hit:
                    tl.store(x_hit_ptr + e, tl.load(x_adv_ptr + e, mask=mask), mask=mask)
            z, g = iterate_chunk(
                x_adv_ptr, x_best_ptr, grad_ptr, grad_best_ptr, box_ptr, e, mask, restore, D,
                BOX, DTYPE,
            )  # fmt: skip
            total += g * g
        factor, finite = finite_factor(tl.sum(total, 0), step, DTYPE)

        total = tl.zeros([BLOCK], DTYPE)
        for start in range(0, D, BLOCK):
            e = start + offset
            mask = e < D
            z, g = iterate_chunk(
                x_adv_ptr, x_best_ptr, grad_ptr, grad_best_ptr, box_ptr, e, mask, restore, D,
                BOX, DTYPE,
            )  # fmt: skip
            unit = unit_chunk(box_ptr, e, mask, D, BOX, DTYPE)
            if BOX == 3:
                g *= unit
            x = tl.load(x_ptr + e, mask=mask, other=0.0).to(DTYPE)
            u = ascended_offset(z.to(DTYPE), g, x, factor, finite)
            total += squared(u, unit, DTYPE)
        shrink = ball_factor(root(tl.sum(total, 0), DTYPE), radius, DTYPE)

        total = tl.zeros([BLOCK], DTYPE)
        for start in range(0, D, BLOCK):
            e = start + offset
            mask = e < D
            z, g = iterate_chunk(
                x_adv_ptr, x_best_ptr, grad_ptr, grad_best_ptr, box_ptr, e, mask, restore, D,
                BOX, DTYPE,
            )  # fmt: skip
            x = tl.load(x_ptr + e, mask=mask, other=0.0).to(DTYPE)
            previous = tl.load(x_previous_ptr + e, mask=mask, other=0.0).to(DTYPE)
            unit = unit_chunk(box_ptr, e, mask, D, BOX, DTYPE)
            least, most = bounds_chunk(box_ptr, low, high, e, mask, D, BOX, DTYPE)
            if BOX == 3:
                g *= unit
            u = ascended_offset(z.to(DTYPE), g, x, factor, finite)
            w = with_momentum(z.to(DTYPE), u, x, previous, shrink, first, least, most)
            w = tl.where(mask, w, 0.0)  # bounds without 0 lift the padding
            total += squared(w, unit, DTYPE)
        last_shrink = ball_factor(root(tl.sum(total, 0), DTYPE), radius, DTYPE)

        for start in range(0, D, BLOCK):
            e = start + offset
            mask = e < D
            z, g = iterate_chunk(
                x_adv_ptr, x_best_ptr, grad_ptr, grad_best_ptr, box_ptr, e, mask, restore, D,
                BOX, DTYPE,
            )  # fmt: skip
            x = tl.load(x_ptr + e, mask=mask, other=0.0).to(DTYPE)
            previous = tl.load(x_previous_ptr + e, mask=mask, other=0.0).to(DTYPE)
            unit = unit_chunk(box_ptr, e, mask, D, BOX, DTYPE)
            least, most = bounds_chunk(box_ptr, low, high, e, mask, D, BOX, DTYPE)
            if BOX == 3:
                g *= unit
            u = ascended_offset(z.to(DTYPE), g, x, factor, finite)
            w = with_momentum(z.to(DTYPE), u, x, previous, shrink, first, least, most)
            moved = clamp_keeping_nan(x + w * last_shrink, least, most)
            tl.store(x_previous_ptr + e, z, mask=mask)
            tl.store(x_adv_ptr + e, moved.to(x_adv_ptr.dtype.element_ty), mask=mask)
