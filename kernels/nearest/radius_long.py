"""The step of DDN or FMN of rows that do not fit on chip: the row is read a chunk at a time."""

import triton
import triton.language as tl

from ..fab.projection import joined, norm_of
from ..rounding import clamp_keeping_nan, root
from ..steps.l1_projection import (
    float_bits,
    l1_kept,
    l1_room,
    l1_search,
    l1_search_end,
    l1_search_start,
    l1_shrunk,
)
from ..steps.l2_projection import step_factor, unit_scale
from .rules import gap_of, length_part, load_slope, next_radius, onto_sphere
from .verdict import is_active, judge


@triton.jit
def _moved(
    x_adv_ptr, x_ptr, grad_ptr, e, D, scale, factor, lo, hi,
    MINDS_BOUNDS: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """(x, x_adv - x + (grad * scale) * factor) of elements e of a row."""
    x_adv = tl.load(x_adv_ptr + e, mask=e < D, other=0.0).to(DTYPE)
    x = tl.load(x_ptr + e, mask=e < D, other=0.0).to(DTYPE)
    g = load_slope(grad_ptr, e, D, x_adv, lo, hi, MINDS_BOUNDS, DTYPE)
    return x, x_adv - x + g * scale * factor


@triton.jit
def radius_step_long_kernel(
    x_adv_ptr, closest_ptr, grad_ptr, x_ptr, loss_ptr, prediction_ptr, aims_ptr, distance_ptr,
    radius_ptr, limit_ptr, slots_ptr, eps_ptr, schedule_ptr,
    overshoot: "fp64", lo: "fp64", hi: "fp64",  # noqa: F821
    steps, D,
    NORM: tl.constexpr, RULE: tl.constexpr, MINDS_BOUNDS: tl.constexpr, TARGETED: tl.constexpr,
    STOP_EARLY: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`radius_step_kernel` with the row read anew at each pass; the point is written last."""
    row = tl.program_id(0).to(tl.int64)
    here_ptr = x_adv_ptr + row * D
    clean_ptr = x_ptr + row * D
    slope_ptr = grad_ptr + row * D
    offset = tl.arange(0, BLOCK)
    low = tl.full([], lo, DTYPE)
    high = tl.full([], hi, DTYPE)
    if is_active(slots_ptr, row):
        parts = tl.zeros([BLOCK], DTYPE)
        largest = tl.zeros([BLOCK], DTYPE)
        for start in range(0, D, BLOCK):
            e = start + offset
            x_adv = tl.load(here_ptr + e, mask=e < D, other=0.0).to(DTYPE)
            x = tl.load(clean_ptr + e, mask=e < D, other=0.0).to(DTYPE)
            parts = joined(parts, length_part(x_adv - x, NORM), NORM)
            g = load_slope(slope_ptr, e, D, x_adv, low, high, MINDS_BOUNDS, DTYPE)
            largest = tl.maximum(largest, tl.abs(g))
        length = norm_of(parts, NORM, DTYPE)
        fooled, closer, over, step, loss, nearest = judge(
            slots_ptr, loss_ptr, prediction_ptr, aims_ptr, distance_ptr, eps_ptr, row, length,
            steps, TARGETED, STOP_EARLY, False, DTYPE,
        )  # fmt: skip
        if closer:
            for start in range(0, D, BLOCK):
                e = start + offset
                stored = tl.load(here_ptr + e, mask=e < D, other=0.0)
                tl.store(closest_ptr + row * D + e, stored, mask=e < D)
        if over == 0:
            greatest = tl.max(largest, 0)
            scale = unit_scale(greatest, DTYPE)
            squares = tl.zeros([BLOCK], DTYPE)
            sizes = tl.zeros([BLOCK], DTYPE)
            for start in range(0, D, BLOCK):
                e = start + offset
                x_adv = tl.load(here_ptr + e, mask=e < D, other=0.0).to(DTYPE)
                g = load_slope(slope_ptr, e, D, x_adv, low, high, MINDS_BOUNDS, DTYPE)
                g *= scale
                squares += g * g
                sizes += tl.abs(g)
            norm = root(tl.sum(squares, 0), DTYPE)
            gap = length
            if RULE == "fmn" and NORM != "l0":
                dual = norm
                if NORM == "linf":
                    dual = tl.sum(sizes, 0)
                elif NORM == "l1":
                    dual = greatest * scale
                gap = gap_of(loss, dual, scale, tl.full([], overshoot, DTYPE), DTYPE)
            size = tl.load(schedule_ptr + step).to(DTYPE)
            gamma = tl.load(schedule_ptr + steps + step).to(DTYPE)
            radius = tl.load(radius_ptr + row).to(DTYPE)
            limit = tl.load(limit_ptr + row).to(DTYPE)
            radius = next_radius(
                radius, limit, fooled, nearest, length, gap, gamma, RULE, NORM == "l0"
            )
            tl.debug_barrier()  # every warp has read the radius before one thread writes it
            tl.store(radius_ptr + row, radius)
            factor = step_factor(size, norm, 0.0, DTYPE)
            shrink = factor
            t, correction, outside = radius, radius, step < 0
            least, most = low, high
            if MINDS_BOUNDS == 0:
                most = tl.full([], float("inf"), DTYPE)
                least = -most
            if NORM == "l2":
                squares = tl.zeros([BLOCK], DTYPE)
                for start in range(0, D, BLOCK):
                    e = start + offset
                    x, u = _moved(
                        here_ptr, clean_ptr, slope_ptr, e, D, scale, factor, low, high,
                        MINDS_BOUNDS, DTYPE,
                    )  # fmt: skip
                    squares += tl.where(e < D, u * u, 0.0)
                shrink = onto_sphere(radius, root(tl.sum(squares, 0), DTYPE), DTYPE)
            elif NORM == "l1":
                guess, under, above, mass, slope, turn = l1_search_start(DTYPE)
                while guess >= 0:
                    kept_sum = tl.zeros([BLOCK], DTYPE)
                    falling_sum = tl.zeros([BLOCK], DTYPE)
                    for start in range(0, D, BLOCK):
                        e = start + offset
                        x, u = _moved(
                            here_ptr, clean_ptr, slope_ptr, e, D, scale, factor, low, high,
                            MINDS_BOUNDS, DTYPE,
                        )  # fmt: skip
                        kept, falling = l1_kept(
                            tl.abs(u), l1_room(u, x, least, most), guess.to(DTYPE, bitcast=True)
                        )
                        kept_sum += kept
                        falling_sum += falling
                    guess, under, above, mass, slope, turn = l1_search(
                        guess, under, above, mass, slope, turn, tl.sum(kept_sum, 0),
                        tl.sum(falling_sum, 0), radius, DTYPE,
                    )  # fmt: skip
                t, correction, outside = l1_search_end(under, above, mass, slope, radius, DTYPE)
            elif NORM == "l0":
                threshold = float_bits(tl.full([], 0.0, DTYPE), DTYPE) + 1
                above = float_bits(tl.full([], float("inf"), DTYPE), DTYPE)
                count = tl.maximum(radius, 1.0).to(tl.int32)
                # the largest threshold that so many reach, if any but zeros do
                while above - threshold > 1:
                    middle = threshold + (above - threshold) // 2
                    reached = tl.zeros([BLOCK], tl.int32)
                    for start in range(0, D, BLOCK):
                        e = start + offset
                        x, u = _moved(
                            here_ptr, clean_ptr, slope_ptr, e, D, scale, factor, low, high,
                            MINDS_BOUNDS, DTYPE,
                        )  # fmt: skip
                        size_bits = float_bits(tl.abs(u), DTYPE)
                        reached += ((size_bits >= middle) & (e < D)).to(tl.int32)
                    enough = tl.sum(reached, 0) >= count
                    threshold = tl.where(enough, middle, threshold)
                    above = tl.where(enough, above, middle)
            for start in range(0, D, BLOCK):
                e = start + offset
                x, u = _moved(
                    here_ptr, clean_ptr, slope_ptr, e, D, scale, factor, low, high,
                    MINDS_BOUNDS, DTYPE,
                )  # fmt: skip
                if NORM == "linf":
                    u = tl.minimum(tl.maximum(u, -radius), radius)
                elif NORM == "l2":
                    u *= shrink
                elif NORM == "l1":
                    u = tl.where(outside, l1_shrunk(u, x, t, correction, least, most), u)
                moved = clamp_keeping_nan(x + u, low, high)
                if NORM == "l0":
                    clean = tl.load(clean_ptr + e, mask=e < D, other=0.0)
                    size_bits = float_bits(tl.abs(u), DTYPE)
                    kept = (size_bits >= threshold) & (moved != x)
                    moved = tl.where(kept, moved.to(clean.dtype), clean)  # the bits of x
                tl.store(here_ptr + e, moved.to(x_adv_ptr.dtype.element_ty), mask=e < D)
