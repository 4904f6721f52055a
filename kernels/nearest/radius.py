"""One step of DDN or FMN in one launch: verdict on the last point, new radius, the next point."""

import triton
import triton.language as tl

from ..aot import AotCase, argument_types
from ..fab.projection import norm_of
from ..geometry import LONG_ROW, ROW_BLOCK, compute_dtype, row_kernel
from ..launching import launch
from ..rounding import clamp_keeping_nan, root
from ..steps.l1_projection import float_bits, least_kept_bits, project_l1_row
from ..steps.l2_projection import step_factor, unit_scale
from .radius_long import radius_step_long_kernel
from .rules import dual_part, gap_of, length_part, load_slope, next_radius, onto_sphere
from .verdict import is_active, judge

ROW_LIMIT = ROW_BLOCK
_LONG_L1 = 2048, 8  # with 16 warps it is held to 40 registers, and spills on sm_80


@triton.jit
def radius_step_kernel(
    x_adv_ptr, closest_ptr, grad_ptr, x_ptr, loss_ptr, prediction_ptr, aims_ptr, distance_ptr,
    radius_ptr, limit_ptr, slots_ptr, eps_ptr, schedule_ptr,
    overshoot: "fp64", lo: "fp64", hi: "fp64",  # noqa: F821
    steps, D,
    NORM: tl.constexpr, RULE: tl.constexpr, MINDS_BOUNDS: tl.constexpr, TARGETED: tl.constexpr,
    STOP_EARLY: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One sample a program, its row in registers."""
    row = tl.program_id(0).to(tl.int64)
    base = row * D
    e = tl.arange(0, BLOCK)
    mask = e < D
    low = tl.full([], lo, DTYPE)
    high = tl.full([], hi, DTYPE)
    if is_active(slots_ptr, row):
        stored = tl.load(x_adv_ptr + base + e, mask=mask, other=0.0)
        x = tl.load(x_ptr + base + e, mask=mask, other=0.0).to(DTYPE)
        x_adv = stored.to(DTYPE)
        u = x_adv - x
        length = norm_of(length_part(u, NORM), NORM, DTYPE)
        fooled, closer, over, step, loss, nearest = judge(
            slots_ptr, loss_ptr, prediction_ptr, aims_ptr, distance_ptr, eps_ptr, row, length,
            steps, TARGETED, STOP_EARLY, False, DTYPE,
        )  # fmt: skip
        if closer:
            tl.store(closest_ptr + base + e, stored, mask=mask)
        if over == 0:
            g = load_slope(grad_ptr + base, e, D, x_adv, low, high, MINDS_BOUNDS, DTYPE)
            scale = unit_scale(tl.max(tl.abs(g), 0), DTYPE)
            g *= scale
            norm = root(tl.sum(g * g, 0), DTYPE)
            gap = length
            if RULE == "fmn" and NORM != "l0":
                dual = norm
                if NORM != "l2":
                    dual = norm_of(dual_part(g, NORM), "linf" if NORM == "l1" else "l1", DTYPE)
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
            u += g * step_factor(size, norm, 0.0, DTYPE)
            if NORM == "linf":
                u = tl.minimum(tl.maximum(u, -radius), radius)
            elif NORM == "l2":
                u *= onto_sphere(radius, root(tl.sum(u * u, 0), DTYPE), DTYPE)
            elif NORM == "l0":
                moved = clamp_keeping_nan(x + u, low, high)
                bits = float_bits(tl.where(mask, tl.abs(u), 0.0), DTYPE)
                least, _ = least_kept_bits(bits, tl.maximum(radius, 1.0).to(tl.int32))
                kept = bits >= least
            else:
                if MINDS_BOUNDS:
                    shrunk, outside = project_l1_row(u, x, radius, low, high, DTYPE)
                else:
                    end = tl.full([], float("inf"), DTYPE)
                    shrunk, outside = project_l1_row(u, x, radius, -end, end, DTYPE)
                u = tl.where(outside, shrunk, u)
            if NORM == "l0":
                clean = tl.load(x_ptr + base + e, mask=mask, other=0.0)
                moved = tl.where(kept & (moved != x), moved.to(clean.dtype), clean)  # the bits of x
            else:
                moved = clamp_keeping_nan(x + u, low, high)
            tl.store(x_adv_ptr + base + e, moved.to(x_adv_ptr.dtype.element_ty), mask=mask)


def _kernel(size, norm):
    long = radius_step_long_kernel, _LONG_L1 if norm == "l1" else LONG_ROW
    return row_kernel(size, ROW_LIMIT, radius_step_kernel, long)


def launch_radius_step(
    x_adv, closest, grad, x, loss, prediction, aims, distance, radius, limit, slot_state, eps,
    schedule, overshoot, lo, hi, norm, rule, minds_bounds, targeted, stop_early,
):  # fmt: skip
    """One launch over dense rows that share a layout."""
    if x_adv.numel() == 0:
        return
    batch = x_adv.shape[0]
    size = x_adv.numel() // batch
    kernel, block, warps = _kernel(size, norm)
    launch(
        kernel, batch,
        (x_adv, closest, grad, x, loss, prediction, aims, distance, radius, limit, slot_state, eps,
         schedule, overshoot, lo, hi, schedule.shape[1], size),
        num_warps=warps, NORM=norm, RULE=rule, MINDS_BOUNDS=minds_bounds, TARGETED=targeted,
        STOP_EARLY=stop_early, DTYPE=compute_dtype(x_adv), BLOCK=block,
    )  # fmt: skip


def aot_cases():
    """DDN, and FMN in each norm, of an image's row; of a long one."""
    types = argument_types(radius_step_kernel, aims_ptr="*i64")
    half = types | {n: "*bf16" for n in ("x_adv_ptr", "closest_ptr", "grad_ptr", "x_ptr")}

    def case(name, norm, rule, size, signature=types, targeted=False, **demands):
        kernel, block, warps = _kernel(size, norm)
        constants = dict(
            NORM=norm, RULE=rule, MINDS_BOUNDS=not targeted, TARGETED=targeted,
            STOP_EARLY=not targeted, DTYPE=tl.float32, BLOCK=block,
        )  # fmt: skip
        return AotCase(name, kernel, signature, constants, warps, ("steps",), **demands)

    return [
        case("ddn", "l2", "ddn", 3072, half, vectorised=True),
        case("fmn_linf", "linf", "fmn", 3072, targeted=True, vectorised=True),
        case("fmn_l1", "l1", "fmn", ROW_LIMIT, vectorised=True),
        case("fmn_l0", "l0", "fmn", 3072),
        case("fmn_l2_long", "l2", "fmn", 150_528, vectorised=True),
        case("fmn_l1_long", "l1", "fmn", 150_528),
        case("fmn_l0_long", "l0", "fmn", 150_528),
    ]
