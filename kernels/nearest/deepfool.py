"""DeepFool's step in one launch: verdict on the last point, then onto a linear model's boundary."""

import triton
import triton.language as tl

from ..aot import AotCase, argument_types
from ..fab.projection import joined, norm_of, norm_part
from ..geometry import compute_dtype, row_geometry
from ..launching import launch
from ..rounding import clamp_keeping_nan, divide
from ..steps.l2_projection import unit_scale
from .rules import dual_part, load_slope
from .verdict import is_active, judge

_CHUNK = 2048  # with 4096, sm_80 holds it to 64 registers and spills
_FARTHEST = tl.constexpr(1e30)  # of a step: finite, because 0 * inf is not 0


@triton.jit
def deepfool_step_kernel(
    x_adv_ptr, closest_ptr, grad_ptr, x_ptr, difference_ptr, prediction_ptr, labels_ptr,
    distance_ptr, slots_ptr, eps_ptr,
    overshoot: "fp64", slack: "fp64", lo: "fp64", hi: "fp64",  # noqa: F821
    steps, D,
    NORM: tl.constexpr, DUAL: tl.constexpr, MINDS_BOUNDS: tl.constexpr, DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One row a program, in chunks, read for its distance and steepness, for the dual norm, and to
    be moved."""
    row = tl.program_id(0).to(tl.int64)
    here_ptr = x_adv_ptr + row * D
    clean_ptr = x_ptr + row * D
    slope_ptr = grad_ptr + row * D
    offset = tl.arange(0, BLOCK)
    low = tl.full([], lo, DTYPE)
    high = tl.full([], hi, DTYPE)
    if is_active(slots_ptr, row):
        parts = tl.zeros([BLOCK], DTYPE)
        maxima = tl.zeros([BLOCK], DTYPE)
        for start in range(0, D, BLOCK):
            e = start + offset
            x_adv = tl.load(here_ptr + e, mask=e < D, other=0.0).to(DTYPE)
            x = tl.load(clean_ptr + e, mask=e < D, other=0.0).to(DTYPE)
            parts = joined(parts, norm_part(x_adv - x, NORM), NORM)
            w = load_slope(slope_ptr, e, D, x_adv, low, high, MINDS_BOUNDS, DTYPE)
            maxima = tl.maximum(maxima, tl.abs(w))
        fooled, closer, over, step, difference, nearest = judge(
            slots_ptr, difference_ptr, prediction_ptr, labels_ptr, distance_ptr, eps_ptr, row,
            norm_of(parts, NORM, DTYPE), steps, False, False, False, DTYPE, True,
        )  # fmt: skip
        if closer:
            for start in range(0, D, BLOCK):
                e = start + offset
                stored = tl.load(here_ptr + e, mask=e < D, other=0.0)
                tl.store(closest_ptr + row * D + e, stored, mask=e < D)
        if over == 0:
            scale = unit_scale(tl.max(maxima, 0), DTYPE)
            parts = tl.zeros([BLOCK], DTYPE)
            for start in range(0, D, BLOCK):
                e = start + offset
                x_adv = tl.load(here_ptr + e, mask=e < D, other=0.0).to(DTYPE)
                w = load_slope(slope_ptr, e, D, x_adv, low, high, MINDS_BOUNDS, DTYPE)
                parts = joined(parts, dual_part(w * scale, NORM), DUAL)
            dual = norm_of(parts, DUAL, DTYPE)
            length = tl.where(dual > 0, dual, 1.0)
            gap = divide(tl.abs(difference) * scale, length, DTYPE) + tl.full([], slack, DTYPE)
            reach = tl.minimum(gap * (1.0 + tl.full([], overshoot, DTYPE)), _FARTHEST)
            factor = tl.where(dual > 0, divide(reach, length, DTYPE), 0.0)
            for start in range(0, D, BLOCK):
                e = start + offset
                x_adv = tl.load(here_ptr + e, mask=e < D, other=0.0).to(DTYPE)
                w = load_slope(slope_ptr, e, D, x_adv, low, high, MINDS_BOUNDS, DTYPE)
                if NORM == "linf":
                    u = tl.where(w > 0, reach, 0.0) - tl.where(w < 0, reach, 0.0)
                else:
                    u = w * scale * factor
                moved = clamp_keeping_nan(x_adv + u, low, high)
                tl.store(here_ptr + e, moved.to(x_adv_ptr.dtype.element_ty), mask=e < D)


_DUAL = {"linf": "l1", "l2": "l2"}


def launch_deepfool_step(
    x_adv, closest, grad, x, difference, prediction, labels, distance, slot_state, eps, steps,
    overshoot, slack, lo, hi, norm, minds_bounds,
):  # fmt: skip
    """One launch over dense rows that share a layout."""
    if x_adv.numel() == 0:
        return
    batch = x_adv.shape[0]
    size = x_adv.numel() // batch
    block, warps = row_geometry(size, _CHUNK)
    launch(
        deepfool_step_kernel, batch,
        (x_adv, closest, grad, x, difference, prediction, labels, distance, slot_state, eps,
         overshoot, slack, lo, hi, steps, size),
        num_warps=warps, NORM=norm, DUAL=_DUAL[norm], MINDS_BOUNDS=minds_bounds,
        DTYPE=compute_dtype(x_adv), BLOCK=block,
    )  # fmt: skip


def aot_cases():
    """Both norms of an image's row, half precision, and a row of several chunks."""
    types = argument_types(deepfool_step_kernel)
    half = types | {n: "*bf16" for n in ("x_adv_ptr", "closest_ptr", "grad_ptr", "x_ptr")}

    def case(name, norm, size, signature=types, minds=True):
        block, warps = row_geometry(size, _CHUNK)
        constants = dict(
            NORM=norm, DUAL=_DUAL[norm], MINDS_BOUNDS=minds, DTYPE=tl.float32, BLOCK=block
        )
        return AotCase(
            name, deepfool_step_kernel, signature, constants, warps, ("steps",), vectorised=True
        )

    return [
        case("deepfool_linf", "linf", 3072),
        case("deepfool_l2", "l2", 3072),
        case("deepfool_l2_ignoring_bounds", "l2", 3072, minds=False),
        case("deepfool_l2_bf16", "l2", 3072, half),
        case("deepfool_linf_long", "linf", 150_528),
    ]
