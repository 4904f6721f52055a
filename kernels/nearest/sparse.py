"""One step of sigma-zero in one launch: verdict on the last point, its threshold, the next one."""

import triton
import triton.language as tl

from ..aot import AotCase, argument_types
from ..fab.projection import finite_or_zero
from ..geometry import LONG_ROW, ROW_BLOCK, compute_dtype, row_geometry
from ..launching import launch
from ..rounding import clamp_keeping_nan, divide, root
from .verdict import is_active, judge

_FIRST = tl.constexpr(0.9)  # Adam's means of gradients and of their squares
_SECOND = tl.constexpr(0.999)
_GUARD = tl.constexpr(1e-8)
_LEAST = tl.constexpr(1e-12)


@triton.jit
def _slope(
    x_adv_ptr, x_ptr, grad_ptr, e, D, inverse, weight, smoothing, count, DTYPE: tl.constexpr
):  # fmt: skip
    """(x, d in units, the gradient that is descended) of elements e of a row."""
    x = tl.load(x_ptr + e, mask=e < D, other=0.0).to(DTYPE)
    d = (tl.load(x_adv_ptr + e, mask=e < D, other=0.0).to(DTYPE) - x) * inverse
    g = finite_or_zero(tl.load(grad_ptr + e, mask=e < D, other=0.0).to(DTYPE))
    base = d * d + smoothing
    return x, d, divide(count * d, base * base, DTYPE) - weight * g


@triton.jit
def sigma_zero_step_kernel(
    x_adv_ptr, closest_ptr, grad_ptr, x_ptr, mean_ptr, square_ptr, loss_ptr, prediction_ptr,
    aims_ptr, distance_ptr, threshold_ptr, slots_ptr, eps_ptr, schedule_ptr,
    lo: "fp64", hi: "fp64", unit: "fp64", smoothing: "fp64", share: "fp64",  # noqa: F821
    steps, D,
    TARGETED: tl.constexpr, STOP_EARLY: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One sample a program: a pass over its row to count, one for the largest slope, one to move.

    share: 2 * smoothing / D.
    """
    row = tl.program_id(0).to(tl.int64)
    here_ptr = x_adv_ptr + row * D
    clean_ptr = x_ptr + row * D
    slope_ptr = grad_ptr + row * D
    offset = tl.arange(0, BLOCK)
    low = tl.full([], lo, DTYPE)
    high = tl.full([], hi, DTYPE)
    width = tl.full([], unit, DTYPE)
    inverse = tl.full([], 1.0 / unit, DTYPE)
    smooth = tl.full([], smoothing, DTYPE)
    count = tl.full([], share, DTYPE)
    if is_active(slots_ptr, row):
        changed = tl.zeros([BLOCK], DTYPE)
        for start in range(0, D, BLOCK):
            e = start + offset
            x_adv = tl.load(here_ptr + e, mask=e < D, other=0.0)
            x = tl.load(clean_ptr + e, mask=e < D, other=0.0)
            changed += tl.where(x_adv != x, 1.0, 0.0)
        fooled, closer, over, step, loss, _ = judge(
            slots_ptr, loss_ptr, prediction_ptr, aims_ptr, distance_ptr, eps_ptr, row,
            tl.sum(changed, 0), steps, TARGETED, STOP_EARLY, False, DTYPE,
        )  # fmt: skip
        if closer:
            for start in range(0, D, BLOCK):
                e = start + offset
                stored = tl.load(here_ptr + e, mask=e < D, other=0.0)
                tl.store(closest_ptr + row * D + e, stored, mask=e < D)
        if over == 0:
            weight = tl.where(loss <= 0, width, 0.0)
            largest = tl.zeros([BLOCK], DTYPE)
            for start in range(0, D, BLOCK):
                slope = _slope(
                    here_ptr, clean_ptr, slope_ptr, start + offset, D, inverse, weight, smooth,
                    count, DTYPE,
                )[2]  # fmt: skip
                largest = tl.maximum(largest, tl.abs(slope))
            most = tl.maximum(tl.max(largest, 0), _LEAST)
            rate = tl.load(schedule_ptr + step)
            spread = tl.load(schedule_ptr + steps + step)
            change = tl.load(schedule_ptr + 2 * steps + step)
            threshold = tl.load(threshold_ptr + row) + tl.where(fooled, change, -change)
            threshold = tl.minimum(tl.maximum(threshold, 0.0), 1.0)
            tl.debug_barrier()  # every warp has read the threshold before one thread writes it
            tl.store(threshold_ptr + row, threshold)
            first = tl.full([], _FIRST, DTYPE)
            first_rest = tl.full([], 1.0 - _FIRST, DTYPE)
            second = tl.full([], _SECOND, DTYPE)
            second_rest = tl.full([], 1.0 - _SECOND, DTYPE)
            for start in range(0, D, BLOCK):
                e = start + offset
                mask = e < D
                x, d, slope = _slope(
                    here_ptr, clean_ptr, slope_ptr, e, D, inverse, weight, smooth, count, DTYPE
                )
                slope = divide(slope, most, DTYPE)
                mean = tl.load(mean_ptr + row * D + e, mask=mask, other=0.0)
                square = tl.load(square_ptr + row * D + e, mask=mask, other=1.0)
                mean = first * mean + first_rest * slope
                square = second * square + second_rest * (slope * slope)
                tl.store(mean_ptr + row * D + e, mean, mask=mask)
                tl.store(square_ptr + row * D + e, square, mask=mask)
                scale = root(square, DTYPE) * spread + _GUARD
                u = d - rate * divide(mean, scale, DTYPE)
                moved = clamp_keeping_nan(x + width * u, low, high)
                still = (tl.abs(moved - x) * inverse < threshold) | (moved == x)
                clean = tl.load(clean_ptr + e, mask=mask, other=0.0)  # the bits of x
                moved = tl.where(still, clean, moved.to(clean.dtype))
                tl.store(here_ptr + e, moved.to(x_adv_ptr.dtype.element_ty), mask=mask)


def _geometry(size):
    return row_geometry(size, 2048) if size <= ROW_BLOCK else LONG_ROW


def launch_sigma_zero_step(
    x_adv, closest, grad, x, mean, square, loss, prediction, aims, distance, threshold, slot_state,
    eps, schedule, lo, hi, unit, smoothing, targeted, stop_early,
):  # fmt: skip
    """One launch over dense rows that share a layout."""
    if x_adv.numel() == 0:
        return
    batch = x_adv.shape[0]
    size = x_adv.numel() // batch
    block, warps = _geometry(size)
    launch(
        sigma_zero_step_kernel, batch,
        (x_adv, closest, grad, x, mean, square, loss, prediction, aims, distance, threshold,
         slot_state, eps, schedule, lo, hi, unit, smoothing, 2.0 * smoothing / size,
         schedule.shape[1], size),
        num_warps=warps, TARGETED=targeted, STOP_EARLY=stop_early, DTYPE=compute_dtype(x_adv),
        BLOCK=block,
    )  # fmt: skip


def aot_cases():
    """An image's row, and a long one in half precision."""
    types = argument_types(sigma_zero_step_kernel, aims_ptr="*i64")
    half = types | {n: "*bf16" for n in ("x_adv_ptr", "closest_ptr", "grad_ptr", "x_ptr")}

    def case(name, size, signature, targeted):
        block, warps = _geometry(size)
        constants = dict(
            TARGETED=targeted, STOP_EARLY=not targeted, DTYPE=tl.float32, BLOCK=block
        )
        return AotCase(
            name, sigma_zero_step_kernel, signature, constants, warps, ("steps",), vectorised=True
        )

    return [
        case("sigma_zero", 3072, types, False),
        case("sigma_zero_long_bf16", 150_528, half, True),
    ]
