"""L1 steps: ascent along the largest gradients, exact projection onto eps-ball and box."""

import triton
import triton.language as tl

from .. import slots
from ..addressing import load_grad, scalar_or_row, store_model_input
from ..aot import AotCase, argument_types
from ..geometry import LONG_ROW, ROW_BLOCK, compute_dtype, row_kernel
from ..launching import launch
from ..rounding import clamp_keeping_nan
from .l1_long import l1_long_kernel
from .l1_projection import (
    float_bits,
    kept_count,
    least_kept_bits,
    project_l1_row,
    sparse_move,
)
from .momentum import updated_momentum

_ACTIVE = tl.constexpr(slots.ACTIVE)
_WIDTH = tl.constexpr(slots.WIDTH)

ROW_LIMIT = ROW_BLOCK  # longer rows are read anew at each turn of a search


@triton.jit
def l1_kernel(
    out_ptr, x_adv_ptr, grad_ptr, x_ptr, momentum_ptr, step_rows_ptr, eps_rows_ptr,
    sparsity_rows_ptr, slots_ptr, input_ptr, mean_ptr, std_ptr,
    step_size: "fp64", eps: "fp64", sparsity: "fp64", lo: "fp64", hi: "fp64",  # noqa: F821
    decay: "fp64", D, INNER,  # noqa: F821
    ASCEND: tl.constexpr, PER_SAMPLE_STEP: tl.constexpr, PER_SAMPLE_EPS: tl.constexpr,
    PER_SAMPLE_SPARSITY: tl.constexpr, SLOTTED: tl.constexpr, MOMENTUM: tl.constexpr,
    MODEL_INPUT: tl.constexpr, CROSS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    DTYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One sample a program, its row in registers; without ASCEND the projection alone."""
    row = tl.program_id(0).to(tl.int64)
    base = row * D
    e = tl.arange(0, BLOCK)
    mask = e < D
    radius = scalar_or_row(eps, eps_rows_ptr, row, PER_SAMPLE_EPS, DTYPE)
    low = tl.full([], lo, DTYPE)
    high = tl.full([], hi, DTYPE)
    active = True
    if SLOTTED:
        active = tl.load(slots_ptr + row * _WIDTH + _ACTIVE) != 0
    if active:
        move = tl.zeros([BLOCK], DTYPE)
        if ASCEND:
            d = load_grad(
                grad_ptr + base, e, mask, std_ptr, D, INNER, DTYPE, MODEL_INPUT, CROSS,
                CHANNELS_LAST,
            )  # fmt: skip
            if MOMENTUM:
                d = updated_momentum(
                    momentum_ptr + base, e, mask, d, tl.sum(tl.abs(d), 0), D,
                    tl.full([], decay, DTYPE), DTYPE,
                )  # fmt: skip
                tl.store(momentum_ptr + base + e, d.to(momentum_ptr.dtype.element_ty), mask=mask)
            share = scalar_or_row(sparsity, sparsity_rows_ptr, row, PER_SAMPLE_SPARSITY, DTYPE)
            step = scalar_or_row(step_size, step_rows_ptr, row, PER_SAMPLE_STEP, DTYPE)
            bits = float_bits(tl.abs(d), DTYPE)
            least, found = least_kept_bits(bits, kept_count(share, D, DTYPE))
            move = sparse_move(d, bits, least, found, step, DTYPE)
        x_adv = tl.load(x_adv_ptr + base + e, mask=mask, other=0.0).to(DTYPE)
        x = tl.load(x_ptr + base + e, mask=mask, other=0.0).to(DTYPE)
        z, outside = project_l1_row(x_adv - x + move, x, radius, low, high, DTYPE)
        moved = clamp_keeping_nan(tl.where(outside, x + z, x_adv + move), low, high)
        stored = moved.to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + base + e, stored, mask=mask)
        if MODEL_INPUT:
            store_model_input(
                input_ptr + base, stored.to(DTYPE), e, mask, mean_ptr, std_ptr, D, INNER,
                DTYPE, CROSS, CHANNELS_LAST,
            )  # fmt: skip


def _kernel(size):
    return row_kernel(size, ROW_LIMIT, l1_kernel, (l1_long_kernel, LONG_ROW))


def launch_l1(
    out, x_adv, grad, x, step_size, step_rows, eps, eps_rows, lo, hi, slot_state, momentum, decay,
    model_input, mean, std, sparsity, sparsity_rows, *, ascends, inner, cross, channels_last,
):  # fmt: skip
    """One launch: a step, or without `ascends` the projection of x_adv, which reads no grad."""
    if x_adv.numel() == 0:
        return
    batch = x_adv.shape[0]
    size = x_adv.numel() // batch
    kernel, block, warps = _kernel(size)
    launch(
        kernel, batch,
        (out, x_adv, grad, x, momentum, step_rows, eps_rows, sparsity_rows, slot_state,
         model_input, mean, std, step_size, eps, sparsity, lo, hi, decay, size, inner),
        num_warps=warps, ASCEND=ascends, PER_SAMPLE_STEP=step_rows is not None,
        PER_SAMPLE_EPS=eps_rows is not None, PER_SAMPLE_SPARSITY=sparsity_rows is not None,
        SLOTTED=slot_state is not None, MOMENTUM=momentum is not None,
        MODEL_INPUT=model_input is not None, CROSS=cross, CHANNELS_LAST=channels_last,
        DTYPE=compute_dtype(x_adv), BLOCK=block,
    )  # fmt: skip


def aot_cases():
    """The specialisations whose machine code is checked."""
    types = argument_types(l1_kernel)
    half = types | {n: "*bf16" for n in ("out_ptr", "x_adv_ptr", "grad_ptr", "x_ptr")}
    plain = dict(
        ASCEND=True, PER_SAMPLE_STEP=False, PER_SAMPLE_EPS=False, PER_SAMPLE_SPARSITY=False,
        SLOTTED=False, MOMENTUM=False, MODEL_INPUT=False, CROSS=False, CHANNELS_LAST=False,
        DTYPE=tl.float32,
    )  # fmt: skip
    engine = plain | dict(
        PER_SAMPLE_STEP=True, PER_SAMPLE_EPS=True, PER_SAMPLE_SPARSITY=True, SLOTTED=True
    )
    both = dict(MOMENTUM=True, MODEL_INPUT=True, CROSS=True)
    _, block, warps = _kernel(3072)
    row = dict(BLOCK=block)
    _, long, long_warps = _kernel(ROW_LIMIT + 1)
    chunk = dict(BLOCK=long)
    return [
        AotCase("l1", l1_kernel, types, plain | row, warps, vectorised=True),
        AotCase("l1_slots", l1_kernel, types, engine | row, warps, vectorised=True),
        AotCase("l1_bf16", l1_kernel, half, plain | row, warps, vectorised=True),
        AotCase("l1_unaligned", l1_kernel, types, plain | row, warps, unaligned=("D",)),
        AotCase("l1_input", l1_kernel, types, engine | row | dict(MODEL_INPUT=True), warps),
        AotCase("l1_momentum_input_cross", l1_kernel, types, engine | row | both, warps),
        AotCase(
            "l1_project", l1_kernel, types, plain | row | dict(ASCEND=False), warps,
            vectorised=True,
        ),
        AotCase("l1_long", l1_long_kernel, types, engine | chunk, long_warps, vectorised=True),
        AotCase(
            "l1_long_momentum_input_cross", l1_long_kernel, types, engine | chunk | both,
            long_warps,
        ),
        AotCase(
            "l1_long_project", l1_long_kernel, types, plain | chunk | dict(ASCEND=False),
            long_warps, vectorised=True,
        ),
    ]  # fmt: skip
