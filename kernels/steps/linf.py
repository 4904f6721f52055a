"""L-infinity steps: ascent by the sign, projection onto the eps-box, pixel clamp, in one launch."""

import functools

import triton
import triton.language as tl

from .. import slots
from ..addressing import (
    box_of,
    load_bounds,
    load_grad,
    load_unit,
    movable_grad,
    scalar_or_row,
    store_model_input,
)
from ..aot import AotCase, argument_types
from ..box import planes
from ..geometry import blocks, dtype_of_size, elementwise_geometry, row_geometry
from ..launching import Variant
from ..rounding import clamp_keeping_nan
from .momentum import updated_momentum

_ACTIVE = tl.constexpr(slots.ACTIVE)
_WIDTH = tl.constexpr(slots.WIDTH)


@triton.jit
def ascended_linf(x_adv, direction, step_size):
    """x_adv + step_size * sign(direction)."""
    sign = tl.where(direction > 0, 1.0, 0.0) - tl.where(direction < 0, 1.0, 0.0)
    return x_adv + step_size * sign.to(x_adv.dtype)


@triton.jit
def step_and_project_linf(x_adv, direction, x, step_size, eps, lo, hi):
    """clamp(min(max(x_adv + step_size * sign(direction), x - eps), x + eps), lo, hi)."""
    moved = ascended_linf(x_adv, direction, step_size)
    return clamp_keeping_nan(clamp_keeping_nan(moved, x - eps, x + eps), lo, hi)


@triton.jit
def step_in_box(
    x_adv, direction, step_size, box_ptr, e, mask, D, BOX: tl.constexpr, DTYPE: tl.constexpr
):  # fmt: skip
    """clamp(x_adv + step_size * unit * sign(direction), lower, upper) of elements e of a row."""
    low, high = load_bounds(box_ptr, e, mask, D, DTYPE)
    if BOX == 3:
        moved = ascended_linf(
            x_adv, direction, step_size * load_unit(box_ptr, e, mask, D, DTYPE)
        )
    else:
        moved = ascended_linf(x_adv, direction, step_size)
    return clamp_keeping_nan(moved, low, high)


@triton.jit
def linf_step_kernel(
    out_ptr, x_adv_ptr, grad_ptr, x_ptr, step_rows_ptr, eps_rows_ptr, slots_ptr, box_ptr,
    input_ptr, mean_ptr, std_ptr,
    step_size: "fp64", eps: "fp64", lo: "fp64", hi: "fp64", D, INNER,  # noqa: F821
    PER_SAMPLE_STEP: tl.constexpr, PER_SAMPLE_EPS: tl.constexpr, SLOTTED: tl.constexpr,
    BOX: tl.constexpr, MODEL_INPUT: tl.constexpr, CROSS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One block of one row; rows are samples, or the whole batch where nothing is per sample."""
    blocks = tl.cdiv(D, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    # 64-bit base, 32-bit offsets: more than 2^31 elements and still 128-bit accesses
    start = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK
    base = start
    if PER_SAMPLE_STEP or PER_SAMPLE_EPS or SLOTTED or MODEL_INPUT or BOX:
        base += row * D
    offset = tl.arange(0, BLOCK)
    step = scalar_or_row(step_size, step_rows_ptr, row, PER_SAMPLE_STEP, DTYPE)
    radius = scalar_or_row(eps, eps_rows_ptr, row, PER_SAMPLE_EPS, DTYPE)
    low = tl.full([], lo, DTYPE)
    high = tl.full([], hi, DTYPE)
    active = True
    if SLOTTED:
        active = tl.load(slots_ptr + row * _WIDTH + _ACTIVE) != 0
    if active:
        if BOX:
            e = start + offset
            mask = e < D
            x_adv = tl.load(x_adv_ptr + base + offset, mask=mask).to(DTYPE)
            if MODEL_INPUT:
                g = load_grad(
                    grad_ptr + row * D, e, mask, std_ptr, D, INNER, DTYPE, False, CROSS,
                    CHANNELS_LAST,
                )  # fmt: skip
            else:
                g = tl.load(grad_ptr + base + offset, mask=mask).to(DTYPE)
            moved = step_in_box(
                x_adv, g, step, box_of(box_ptr, row, D, BOX) + start, offset, mask, D, BOX, DTYPE
            )
            stored = moved.to(out_ptr.dtype.element_ty)
            tl.store(out_ptr + base + offset, stored, mask=mask)
            if MODEL_INPUT:
                store_model_input(
                    input_ptr + row * D, stored.to(DTYPE), e, mask, mean_ptr, std_ptr, D, INNER,
                    DTYPE, CROSS, CHANNELS_LAST,
                )  # fmt: skip
        elif MODEL_INPUT:
            e = start + offset
            mask = e < D
            x_adv = tl.load(x_adv_ptr + base + offset, mask=mask).to(DTYPE)
            x = tl.load(x_ptr + base + offset, mask=mask).to(DTYPE)
            # no division by std: only the sign matters
            g = load_grad(
                grad_ptr + row * D, e, mask, std_ptr, D, INNER, DTYPE, False, CROSS, CHANNELS_LAST
            )
            moved = step_and_project_linf(x_adv, g, x, step, radius, low, high)
            stored = moved.to(out_ptr.dtype.element_ty)
            tl.store(out_ptr + base + offset, stored, mask=mask)
            store_model_input(
                input_ptr + row * D, stored.to(DTYPE), e, mask, mean_ptr, std_ptr, D, INNER,
                DTYPE, CROSS, CHANNELS_LAST,
            )  # fmt: skip
        elif start + BLOCK <= D:
            # full blocks unmasked: with D not divisible by 16 a mask forces 32-bit accesses
            x_adv = tl.load(x_adv_ptr + base + offset).to(DTYPE)
            g = tl.load(grad_ptr + base + offset).to(DTYPE)
            x = tl.load(x_ptr + base + offset).to(DTYPE)
            moved = step_and_project_linf(x_adv, g, x, step, radius, low, high)
            tl.store(out_ptr + base + offset, moved.to(out_ptr.dtype.element_ty))
        else:
            mask = start + offset < D
            x_adv = tl.load(x_adv_ptr + base + offset, mask=mask).to(DTYPE)
            g = tl.load(grad_ptr + base + offset, mask=mask).to(DTYPE)
            x = tl.load(x_ptr + base + offset, mask=mask).to(DTYPE)
            moved = step_and_project_linf(x_adv, g, x, step, radius, low, high)
            tl.store(out_ptr + base + offset, moved.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def linf_momentum_kernel(
    x_adv_ptr, grad_ptr, x_ptr, momentum_ptr, step_rows_ptr, eps_rows_ptr, slots_ptr, box_ptr,
    input_ptr, mean_ptr, std_ptr,
    step_size: "fp64", eps: "fp64", lo: "fp64", hi: "fp64", decay: "fp64", D, INNER,  # noqa: F821
    PER_SAMPLE_STEP: tl.constexpr, PER_SAMPLE_EPS: tl.constexpr, SLOTTED: tl.constexpr,
    BOX: tl.constexpr, MODEL_INPUT: tl.constexpr, CROSS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """MI-FGSM, one sample a program: m = decay * m + g / mean|g|, then the step along sign(m)."""
    row = tl.program_id(0).to(tl.int64)
    base = row * D
    offset = tl.arange(0, BLOCK)
    step = scalar_or_row(step_size, step_rows_ptr, row, PER_SAMPLE_STEP, DTYPE)
    radius = scalar_or_row(eps, eps_rows_ptr, row, PER_SAMPLE_EPS, DTYPE)
    low = tl.full([], lo, DTYPE)
    high = tl.full([], hi, DTYPE)
    mu = tl.full([], decay, DTYPE)
    active = True
    if SLOTTED:
        active = tl.load(slots_ptr + row * _WIDTH + _ACTIVE) != 0
    if active:
        total = tl.zeros([BLOCK], DTYPE)
        for start in range(0, D, BLOCK):
            e = start + offset
            g = load_grad(
                grad_ptr + base, e, e < D, std_ptr, D, INNER, DTYPE, MODEL_INPUT, CROSS,
                CHANNELS_LAST,
            )  # fmt: skip
            if BOX:
                g = movable_grad(g, box_of(box_ptr, row, D, BOX), e, e < D, D, DTYPE)
            total += tl.abs(g)
        sum_abs = tl.sum(total, 0)
        for start in range(0, D, BLOCK):
            e = start + offset
            mask = e < D
            g = load_grad(
                grad_ptr + base, e, mask, std_ptr, D, INNER, DTYPE, MODEL_INPUT, CROSS,
                CHANNELS_LAST,
            )  # fmt: skip
            if BOX:
                g = movable_grad(g, box_of(box_ptr, row, D, BOX), e, mask, D, DTYPE)
            m = updated_momentum(momentum_ptr + base, e, mask, g, sum_abs, D, mu, DTYPE)
            x_adv = tl.load(x_adv_ptr + base + e, mask=mask).to(DTYPE)
            if BOX:
                moved = step_in_box(
                    x_adv, m, step, box_of(box_ptr, row, D, BOX), e, mask, D, BOX, DTYPE
                )
            else:
                x = tl.load(x_ptr + base + e, mask=mask).to(DTYPE)
                moved = step_and_project_linf(x_adv, m, x, step, radius, low, high)
            stored = moved.to(x_adv_ptr.dtype.element_ty)
            tl.store(momentum_ptr + base + e, m.to(momentum_ptr.dtype.element_ty), mask=mask)
            tl.store(x_adv_ptr + base + e, stored, mask=mask)
            if MODEL_INPUT:
                store_model_input(
                    input_ptr + base, stored.to(DTYPE), e, mask, mean_ptr, std_ptr, D, INNER,
                    DTYPE, CROSS, CHANNELS_LAST,
                )  # fmt: skip


@functools.lru_cache(None, typed=True)  # 1 == True
def _variant(
    has_momentum, geometry, per_sample_step, per_sample_eps, slotted, box, model_input, cross,
    channels_last, element_size,
):  # fmt: skip
    """The kernel for such calls: constants that are not put together at each of them."""
    block, warps = geometry
    return Variant(
        linf_momentum_kernel if has_momentum else linf_step_kernel, warps,
        PER_SAMPLE_STEP=per_sample_step, PER_SAMPLE_EPS=per_sample_eps, SLOTTED=slotted, BOX=box,
        MODEL_INPUT=model_input, CROSS=cross, CHANNELS_LAST=channels_last,
        DTYPE=dtype_of_size(element_size), BLOCK=block,
    )  # fmt: skip


def launch_linf_step(
    out, x_adv, grad, x, step_size, step_rows, eps, eps_rows, lo, hi, slot_state,
    momentum, decay, model_input, mean, std, box, *, inner, cross, channels_last,
):  # fmt: skip
    """Launch one step over dense rows that share a layout (model_input excepted); one launch."""
    if x_adv.numel() == 0:
        return
    batch = x_adv.shape[0]
    size = x_adv.numel() // batch
    kind = (
        step_rows is not None, eps_rows is not None, slot_state is not None, planes(box),
        model_input is not None, cross, channels_last, x_adv.element_size(),
    )  # fmt: skip
    if momentum is not None:
        _variant(True, row_geometry(size), *kind).launch(
            batch,
            (out, grad, x, momentum, step_rows, eps_rows, slot_state, box, model_input, mean, std,
              step_size, eps, lo, hi, decay, size, inner),
        )  # fmt: skip
        return
    if (
        step_rows is None and eps_rows is None and slot_state is None and model_input is None
        and box is None
    ):  # fmt: skip
        batch, size = 1, x_adv.numel()  # nothing per sample: one long row, one masked tail
    geometry = elementwise_geometry(size)
    _variant(False, geometry, *kind).launch(
        batch * blocks(size, geometry[0]),
        (out, x_adv, grad, x, step_rows, eps_rows, slot_state, box, model_input, mean, std,
          step_size, eps, lo, hi, size, inner),
    )  # fmt: skip


def aot_cases():
    """The specialisations whose machine code is checked."""
    plain = dict(
        PER_SAMPLE_STEP=False, PER_SAMPLE_EPS=False, SLOTTED=False, BOX=0, MODEL_INPUT=False,
        CROSS=False, CHANNELS_LAST=False, DTYPE=tl.float32,
    )  # fmt: skip
    engine = plain | dict(PER_SAMPLE_STEP=True, PER_SAMPLE_EPS=True, SLOTTED=True)
    step, momentum = argument_types(linf_step_kernel), argument_types(linf_momentum_kernel)
    half = {n: "*bf16" for n in ("out_ptr", "x_adv_ptr", "grad_ptr", "x_ptr")}
    block, warps = elementwise_geometry(3072)
    row_block, row_warps = row_geometry(3072)
    one, row = dict(BLOCK=block), dict(BLOCK=row_block)
    return [
        AotCase("linf", linf_step_kernel, step, plain | one, warps, vectorised=True),
        AotCase("linf_slots", linf_step_kernel, step, engine | one, warps, vectorised=True),
        AotCase("linf_bf16", linf_step_kernel, step | half, plain | one, warps, vectorised=True),
        AotCase(
            "linf_unaligned", linf_step_kernel, step, plain | one, warps, unaligned=("D",)
        ),
        AotCase(
            "linf_input", linf_step_kernel, step, engine | one | dict(MODEL_INPUT=True), warps
        ),
        AotCase(
            "linf_input_cross", linf_step_kernel, step,
            engine | one | dict(MODEL_INPUT=True, CROSS=True), warps,
        ),
        AotCase(
            "linf_box", linf_step_kernel, step, engine | one | dict(BOX=2), warps, vectorised=True
        ),
        AotCase("linf_momentum", linf_momentum_kernel, momentum, engine | row, row_warps),
    ]  # fmt: skip
