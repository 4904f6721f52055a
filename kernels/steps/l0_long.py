"""L0 steps of rows that do not fit on chip: one program a sample loops over chunks of its row."""

import triton
import triton.language as tl

from .. import slots
from ..addressing import scalar_or_row, store_model_input
from ..rounding import divide
from .l0_selection import (
    direction_of,
    kept_of,
    most_of,
    moved_with_gain,
    places,
    scaled,
)
from .l1_projection import float_bits

_ACTIVE = tl.constexpr(slots.ACTIVE)
_WIDTH = tl.constexpr(slots.WIDTH)


@triton.jit
def _reaching(gains_ptr, POSITIONS, least, DTYPE: tl.constexpr, BLOCK: tl.constexpr):
    """How many gains of a row have at least the bits `least`."""
    offset = tl.arange(0, BLOCK)
    found = tl.zeros([BLOCK], tl.int32)
    for start in range(0, POSITIONS, BLOCK):
        p = start + offset
        gain = tl.load(gains_ptr + p, mask=p < POSITIONS, other=0.0)
        found += (float_bits(gain, DTYPE) >= least).to(tl.int32)
    return tl.sum(found, 0)


@triton.jit
def l0_long_kernel(
    x_adv_ptr, grad_ptr, x_ptr, momentum_ptr, step_rows_ptr, eps_rows_ptr, slots_ptr, input_ptr,
    mean_ptr, std_ptr, gains_ptr,
    step_size: "fp64", eps: "fp64", lo: "fp64", hi: "fp64", decay: "fp64",  # noqa: F821
    D, POSITIONS, INNER,
    PER_SAMPLE_STEP: tl.constexpr, PER_SAMPLE_EPS: tl.constexpr, SLOTTED: tl.constexpr,
    MOMENTUM: tl.constexpr, MODEL_INPUT: tl.constexpr, CROSS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, DTYPE: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`l0_kernel` with the row read anew in each pass and the gains kept in memory."""
    row = tl.program_id(0).to(tl.int64)
    base = row * D
    kept_ptr = gains_ptr + row * POSITIONS
    c = tl.arange(0, CHANNELS)[:, None]
    offset = tl.arange(0, BLOCK)
    low = tl.full([], lo, DTYPE)
    high = tl.full([], hi, DTYPE)
    mu = tl.full([], decay, DTYPE)
    sum_abs = tl.full([], 0.0, DTYPE)
    active = True
    if SLOTTED:
        active = tl.load(slots_ptr + row * _WIDTH + _ACTIVE) != 0
    if active:
        if MOMENTUM:
            sums = tl.zeros([CHANNELS, BLOCK], DTYPE)
            for start in range(0, POSITIONS, BLOCK):
                p = (start + offset)[None, :]
                e = places(c, p, POSITIONS, D, INNER, CHANNELS_LAST)
                mask = (c * POSITIONS < D) & (p < POSITIONS)
                sums += tl.abs(direction_of(
                    grad_ptr, momentum_ptr, std_ptr, base, e, mask, sum_abs, mu, D, INNER,
                    False, MODEL_INPUT, CROSS, CHANNELS_LAST, DTYPE,
                ))  # fmt: skip
            sum_abs = tl.sum(tl.sum(sums, 1), 0)

        maxima = tl.zeros([CHANNELS, BLOCK], DTYPE)
        for start in range(0, POSITIONS, BLOCK):
            p = (start + offset)[None, :]
            e = places(c, p, POSITIONS, D, INNER, CHANNELS_LAST)
            mask = (c * POSITIONS < D) & (p < POSITIONS)
            d = direction_of(
                grad_ptr, momentum_ptr, std_ptr, base, e, mask, sum_abs, mu, D, INNER,
                MOMENTUM, MODEL_INPUT, CROSS, CHANNELS_LAST, DTYPE,
            )  # fmt: skip
            maxima = tl.maximum(maxima, tl.where(mask, tl.abs(d), 0.0))
        largest = tl.minimum(tl.max(tl.max(maxima, 1), 0), most_of(DTYPE))

        sums = tl.zeros([CHANNELS, BLOCK], DTYPE)
        for start in range(0, POSITIONS, BLOCK):
            p = (start + offset)[None, :]
            e = places(c, p, POSITIONS, D, INNER, CHANNELS_LAST)
            mask = (c * POSITIONS < D) & (p < POSITIONS)
            d = direction_of(
                grad_ptr, momentum_ptr, std_ptr, base, e, mask, sum_abs, mu, D, INNER,
                MOMENTUM, MODEL_INPUT, CROSS, CHANNELS_LAST, DTYPE,
            )  # fmt: skip
            sums += tl.where(mask, tl.abs(scaled(d, largest, DTYPE)), 0.0)
        total = tl.maximum(tl.sum(tl.sum(sums, 1), 0), 1.0)

        step = scalar_or_row(step_size, step_rows_ptr, row, PER_SAMPLE_STEP, DTYPE)
        for start in range(0, POSITIONS, BLOCK):
            p = (start + offset)[None, :]
            e = places(c, p, POSITIONS, D, INNER, CHANNELS_LAST)
            mask = (c * POSITIONS < D) & (p < POSITIONS)
            d = direction_of(
                grad_ptr, momentum_ptr, std_ptr, base, e, mask, sum_abs, mu, D, INNER,
                MOMENTUM, MODEL_INPUT, CROSS, CHANNELS_LAST, DTYPE,
            )  # fmt: skip
            x_adv = tl.load(x_adv_ptr + base + e, mask=mask, other=0.0).to(DTYPE)
            x = tl.load(x_ptr + base + e, mask=mask, other=0.0).to(DTYPE)
            unit = divide(scaled(d, largest, DTYPE), total, DTYPE)
            _, gain = moved_with_gain(x_adv, x, unit, step, low, high)
            gain = tl.sum(tl.where(mask, gain, 0.0), 0)
            tl.store(kept_ptr + start + offset, gain, mask=start + offset < POSITIONS)
        tl.debug_barrier()  # every warp reads what the others have written

        count = scalar_or_row(eps, eps_rows_ptr, row, PER_SAMPLE_EPS, DTYPE).to(tl.int32)
        least = float_bits(tl.full([], 0.0, DTYPE), DTYPE) + 1
        most = float_bits(tl.full([], float("inf"), DTYPE), DTYPE) + 1
        found = _reaching(kept_ptr, POSITIONS, least, DTYPE, BLOCK)
        while (found > count) & (most - least > 1):
            middle = least + (most - least) // 2
            reach = _reaching(kept_ptr, POSITIONS, middle, DTYPE, BLOCK)
            enough = reach >= count
            least = tl.where(enough, middle, least)
            found = tl.where(enough, reach, found)
            most = tl.where(enough, most, middle)
        above = _reaching(kept_ptr, POSITIONS, least + 1, DTYPE, BLOCK)

        before = tl.full([], 0, tl.int32)
        for start in range(0, POSITIONS, BLOCK):
            p = (start + offset)[None, :]
            e = places(c, p, POSITIONS, D, INNER, CHANNELS_LAST)
            mask = (c * POSITIONS < D) & (p < POSITIONS)
            d = direction_of(
                grad_ptr, momentum_ptr, std_ptr, base, e, mask, sum_abs, mu, D, INNER,
                MOMENTUM, MODEL_INPUT, CROSS, CHANNELS_LAST, DTYPE,
            )  # fmt: skip
            x_adv = tl.load(x_adv_ptr + base + e, mask=mask, other=0.0).to(DTYPE)
            x = tl.load(x_ptr + base + e, mask=mask, other=0.0).to(DTYPE)
            unit = divide(scaled(d, largest, DTYPE), total, DTYPE)
            moved, _ = moved_with_gain(x_adv, x, unit, step, low, high)
            gain = tl.load(kept_ptr + start + offset, mask=start + offset < POSITIONS, other=0.0)
            bits = float_bits(gain, DTYPE)
            kept = kept_of(bits, least, found, count, above, before)[None, :]
            before += tl.sum((bits == least).to(tl.int32), 0)
            stored = tl.where(kept & (moved != x), moved, x).to(x_adv_ptr.dtype.element_ty)
            if MOMENTUM:
                tl.store(momentum_ptr + base + e, d.to(momentum_ptr.dtype.element_ty), mask=mask)
            tl.store(x_adv_ptr + base + e, stored, mask=mask)
            if MODEL_INPUT:
                store_model_input(
                    input_ptr + base, stored.to(DTYPE), e, mask, mean_ptr, std_ptr, D, INNER,
                    DTYPE, CROSS, CHANNELS_LAST,
                )  # fmt: skip
