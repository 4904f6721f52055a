"""L0 steps: ascent, then the exact projection onto few changed entries, or pixels, and the box."""

import triton
import triton.language as tl

from .. import slots
from ..addressing import scalar_or_row, store_model_input
from ..aot import AotCase, argument_types
from ..geometry import ROW_BLOCK, compute_dtype, held_row_geometry, power_of_two
from ..launching import launch
from ..rounding import divide
from .l0_long import l0_long_kernel
from .l0_selection import (
    direction_of,
    gain_bits,
    kept_of,
    most_of,
    moved_with_gain,
    places,
    scaled,
)
from .l1_projection import least_kept_bits

_ACTIVE = tl.constexpr(slots.ACTIVE)
_WIDTH = tl.constexpr(slots.WIDTH)

ROW_LIMIT = ROW_BLOCK  # longer rows are read anew in each pass
LONG_ROW = 1024, 8  # 2048, 16 spills with a momentum, a model input and pixels on sm_80


@triton.jit
def l0_kernel(
    x_adv_ptr, grad_ptr, x_ptr, momentum_ptr, step_rows_ptr, eps_rows_ptr, slots_ptr, input_ptr,
    mean_ptr, std_ptr, gains_ptr,
    step_size: "fp64", eps: "fp64", lo: "fp64", hi: "fp64", decay: "fp64",  # noqa: F821
    D, POSITIONS, INNER,
    PER_SAMPLE_STEP: tl.constexpr, PER_SAMPLE_EPS: tl.constexpr, SLOTTED: tl.constexpr,
    MOMENTUM: tl.constexpr, MODEL_INPUT: tl.constexpr, CROSS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, DTYPE: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One sample a program, its row in registers as (channels, positions)."""
    row = tl.program_id(0).to(tl.int64)
    base = row * D
    c = tl.arange(0, CHANNELS)[:, None]
    p = tl.arange(0, BLOCK)[None, :]
    e = places(c, p, POSITIONS, D, INNER, CHANNELS_LAST)
    mask = (c * POSITIONS < D) & (p < POSITIONS)
    low = tl.full([], lo, DTYPE)
    high = tl.full([], hi, DTYPE)
    active = True
    if SLOTTED:
        active = tl.load(slots_ptr + row * _WIDTH + _ACTIVE) != 0
    if active:
        mu = tl.full([], decay, DTYPE)
        sum_abs = tl.full([], 0.0, DTYPE)
        if MOMENTUM:
            d = direction_of(
                grad_ptr, momentum_ptr, std_ptr, base, e, mask, sum_abs, mu, D, INNER,
                False, MODEL_INPUT, CROSS, CHANNELS_LAST, DTYPE,
            )  # fmt: skip
            sum_abs = tl.sum(tl.sum(tl.abs(d), 1), 0)
        d = direction_of(
            grad_ptr, momentum_ptr, std_ptr, base, e, mask, sum_abs, mu, D, INNER,
            MOMENTUM, MODEL_INPUT, CROSS, CHANNELS_LAST, DTYPE,
        )  # fmt: skip
        if MOMENTUM:
            tl.store(momentum_ptr + base + e, d.to(momentum_ptr.dtype.element_ty), mask=mask)
        largest = tl.minimum(tl.max(tl.max(tl.abs(d), 1), 0), most_of(DTYPE))
        unit = scaled(d, largest, DTYPE)
        total = tl.maximum(tl.sum(tl.sum(tl.abs(unit), 1), 0), 1.0)
        unit = divide(unit, total, DTYPE)
        step = scalar_or_row(step_size, step_rows_ptr, row, PER_SAMPLE_STEP, DTYPE)
        x_adv = tl.load(x_adv_ptr + base + e, mask=mask, other=0.0).to(DTYPE)
        x = tl.load(x_ptr + base + e, mask=mask, other=0.0).to(DTYPE)
        moved, gain = moved_with_gain(x_adv, x, unit, step, low, high)
        bits = gain_bits(tl.where(mask, gain, 0.0), DTYPE)
        count = scalar_or_row(eps, eps_rows_ptr, row, PER_SAMPLE_EPS, DTYPE).to(tl.int32)
        least, found = least_kept_bits(bits, count)
        above = tl.sum((bits > least).to(tl.int32), 0)
        kept = kept_of(bits, least, found, count, above, 0)[None, :]
        # where nothing is changed the bits are those of x: -0.0 stays -0.0
        stored = tl.where(kept & (moved != x), moved, x).to(x_adv_ptr.dtype.element_ty)
        tl.store(x_adv_ptr + base + e, stored, mask=mask)
        if MODEL_INPUT:
            store_model_input(
                input_ptr + base, stored.to(DTYPE), e, mask, mean_ptr, std_ptr, D, INNER,
                DTYPE, CROSS, CHANNELS_LAST,
            )  # fmt: skip


def _geometry(channels, positions):
    """(kernel, CHANNELS, BLOCK, num_warps) of samples of as many channels at as many positions."""
    wide = power_of_two(channels)
    if fits(channels, positions):
        size, warps = held_row_geometry(wide * power_of_two(positions), ROW_LIMIT)
        return l0_kernel, wide, max(1, size // wide), warps
    size, warps = LONG_ROW
    return l0_long_kernel, wide, max(1, size // wide), warps


def fits(channels, positions):
    """Whether a row is held in registers; of longer ones the gains are kept in memory."""
    return power_of_two(channels) * power_of_two(max(1, positions)) <= ROW_LIMIT


def launch_l0(
    x_adv, grad, x, step_size, step_rows, eps, eps_rows, lo, hi, slot_state, momentum, decay,
    model_input, mean, std, gains, *, channels, inner, cross, channels_last,
):  # fmt: skip
    """One launch. gains: (B, positions) in the compute dtype for rows that do not fit, else
    None."""
    if x_adv.numel() == 0:
        return
    batch = x_adv.shape[0]
    size = x_adv.numel() // batch
    kernel, wide, block, warps = _geometry(channels, size // channels)
    launch(
        kernel, batch,
        (x_adv, grad, x, momentum, step_rows, eps_rows, slot_state, model_input, mean, std, gains,
         step_size, eps, lo, hi, decay, size, size // channels, inner),
        num_warps=warps, PER_SAMPLE_STEP=step_rows is not None,
        PER_SAMPLE_EPS=eps_rows is not None, SLOTTED=slot_state is not None,
        MOMENTUM=momentum is not None, MODEL_INPUT=model_input is not None, CROSS=cross,
        CHANNELS_LAST=channels_last, DTYPE=compute_dtype(x_adv), CHANNELS=wide, BLOCK=block,
    )  # fmt: skip


def aot_cases():
    """The specialisations whose machine code is checked."""
    types = argument_types(l0_kernel)
    half = types | {n: "*bf16" for n in ("x_adv_ptr", "grad_ptr", "x_ptr")}
    plain = dict(
        PER_SAMPLE_STEP=True, PER_SAMPLE_EPS=True, SLOTTED=True, MOMENTUM=False,
        MODEL_INPUT=False, CROSS=False, CHANNELS_LAST=False, DTYPE=tl.float32,
    )  # fmt: skip

    def case(name, channels, positions, signature=types, demands=(), **more):
        kernel, wide, block, warps = _geometry(channels, positions)
        constants = plain | dict(CHANNELS=wide, BLOCK=block) | more
        inner = ("INNER",) if more.get("CHANNELS_LAST") else ()
        return AotCase(
            name, kernel, signature, constants, warps, inner, vectorised="wide" in demands
        )

    both = dict(MOMENTUM=True, MODEL_INPUT=True, CROSS=True)
    return [
        case("l0", 1, 3072, demands=("wide",)),
        case("l0_bf16", 1, 3072, half, demands=("wide",)),
        case("l0_pixels", 3, 1024, demands=("wide",)),
        case("l0_channels_last", 3, 1024, CHANNELS_LAST=True),
        case("l0_momentum_input_cross", 1, 3072, **both),
        case("l0_long", 1, 150_528, demands=("wide",)),
        case("l0_long_pixels_momentum_input_cross", 3, 50_176, **both),
    ]
