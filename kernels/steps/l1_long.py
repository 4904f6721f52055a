"""L1 steps of rows that do not fit on chip: one program a sample loops over chunks of its row."""

import triton
import triton.language as tl

from .. import slots
from ..addressing import load_grad, scalar_or_row, store_model_input
from ..rounding import clamp_keeping_nan
from .l1_projection import (
    float_bits,
    kept_count,
    l1_kept,
    l1_room,
    l1_search,
    l1_search_end,
    l1_search_start,
    l1_shrunk,
    sparse_move,
)
from .momentum import updated_momentum

_ACTIVE = tl.constexpr(slots.ACTIVE)
_WIDTH = tl.constexpr(slots.WIDTH)
_LEVELS = tl.constexpr(8)  # thresholds tried in one pass over a row: 5 to 11 passes, not 16 to 31


@triton.jit
def direction_chunk(
    grad_ptr, momentum_ptr, std_ptr, base, e, sum_abs, decay, D, INNER,
    MOMENTUM: tl.constexpr, MODEL_INPUT: tl.constexpr, CROSS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """The gradient of elements e, or the momentum after this step (not stored)."""
    mask = e < D
    d = load_grad(
        grad_ptr + base, e, mask, std_ptr, D, INNER, DTYPE, MODEL_INPUT, CROSS, CHANNELS_LAST
    )
    if MOMENTUM:
        d = updated_momentum(momentum_ptr + base, e, mask, d, sum_abs, D, decay, DTYPE)
    return d


@triton.jit
def l1_long_kernel(
    out_ptr, x_adv_ptr, grad_ptr, x_ptr, momentum_ptr, step_rows_ptr, eps_rows_ptr,
    sparsity_rows_ptr, slots_ptr, input_ptr, mean_ptr, std_ptr,
    step_size: "fp64", eps: "fp64", sparsity: "fp64", lo: "fp64", hi: "fp64",  # noqa: F821
    decay: "fp64", D, INNER,  # noqa: F821
    ASCEND: tl.constexpr, PER_SAMPLE_STEP: tl.constexpr, PER_SAMPLE_EPS: tl.constexpr,
    PER_SAMPLE_SPARSITY: tl.constexpr, SLOTTED: tl.constexpr, MOMENTUM: tl.constexpr,
    MODEL_INPUT: tl.constexpr, CROSS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    DTYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`l1_kernel` with the row read anew at each turn of its two searches; written once, last."""
    row = tl.program_id(0).to(tl.int64)
    base = row * D
    offset = tl.arange(0, BLOCK)
    radius = scalar_or_row(eps, eps_rows_ptr, row, PER_SAMPLE_EPS, DTYPE)
    low = tl.full([], lo, DTYPE)
    high = tl.full([], hi, DTYPE)
    mu = tl.full([], decay, DTYPE)
    sum_abs = tl.full([], 0.0, DTYPE)
    active = True
    if SLOTTED:
        active = tl.load(slots_ptr + row * _WIDTH + _ACTIVE) != 0
    if active:
        if MOMENTUM:
            total = tl.zeros([BLOCK], DTYPE)
            for start in range(0, D, BLOCK):
                d = direction_chunk(
                    grad_ptr, momentum_ptr, std_ptr, base, start + offset, sum_abs, mu,
                    D, INNER, False, MODEL_INPUT, CROSS, CHANNELS_LAST, DTYPE,
                )  # fmt: skip
                total += tl.abs(d)
            sum_abs = tl.sum(total, 0)

        step = scalar_or_row(step_size, step_rows_ptr, row, PER_SAMPLE_STEP, DTYPE)
        none = float_bits(tl.full([], 0.0, DTYPE), DTYPE)
        least = none + 1
        found = tl.full([], 0, tl.int32)
        if ASCEND:
            largest = tl.zeros([BLOCK], none.dtype)
            positive = tl.zeros([BLOCK], tl.int32)
            for start in range(0, D, BLOCK):
                d = direction_chunk(
                    grad_ptr, momentum_ptr, std_ptr, base, start + offset, sum_abs, mu,
                    D, INNER, MOMENTUM, MODEL_INPUT, CROSS, CHANNELS_LAST, DTYPE,
                )  # fmt: skip
                bits = float_bits(tl.abs(d), DTYPE)
                largest = tl.maximum(largest, bits)
                positive += (bits > 0).to(tl.int32)
            share = scalar_or_row(sparsity, sparsity_rows_ptr, row, PER_SAMPLE_SPARSITY, DTYPE)
            count = kept_count(share, D, DTYPE)
            found = tl.sum(positive, 0)
            beyond = tl.max(largest, 0) + 1
            while (found > count) & (beyond - least > 1):
                stride = (beyond - least + _LEVELS) // (_LEVELS + 1)
                levels = least + stride * (1 + tl.arange(0, _LEVELS))
                reach = tl.zeros([_LEVELS, BLOCK], tl.int32)
                for start in range(0, D, BLOCK):
                    d = direction_chunk(
                        grad_ptr, momentum_ptr, std_ptr, base, start + offset, sum_abs,
                        mu, D, INNER, MOMENTUM, MODEL_INPUT, CROSS, CHANNELS_LAST, DTYPE,
                    )  # fmt: skip
                    bits = float_bits(tl.abs(d), DTYPE)
                    reach += (bits[None, :] >= levels[:, None]).to(tl.int32)
                reached = tl.sum(reach, 1)
                enough = reached >= count
                passed = tl.sum(enough.to(tl.int32), 0)
                found = tl.min(tl.where(enough, reached, found), 0)
                beyond = tl.minimum(beyond, least + stride * (passed + 1))
                least += stride * passed

        guess, under, above, mass, slope, turn = l1_search_start(DTYPE)
        while guess >= 0:
            kept_sum = tl.zeros([BLOCK], DTYPE)
            falling_sum = tl.zeros([BLOCK], DTYPE)
            for start in range(0, D, BLOCK):
                e = start + offset
                x_adv = tl.load(x_adv_ptr + base + e, mask=e < D, other=0.0).to(DTYPE)
                x = tl.load(x_ptr + base + e, mask=e < D, other=0.0).to(DTYPE)
                u = x_adv - x
                if ASCEND:
                    d = direction_chunk(
                        grad_ptr, momentum_ptr, std_ptr, base, e, sum_abs, mu,
                        D, INNER, MOMENTUM, MODEL_INPUT, CROSS, CHANNELS_LAST, DTYPE,
                    )  # fmt: skip
                    bits = float_bits(tl.abs(d), DTYPE)
                    u += sparse_move(d, bits, least, found, step, DTYPE)
                kept, falling = l1_kept(
                    tl.abs(u), l1_room(u, x, low, high), guess.to(DTYPE, bitcast=True)
                )
                kept_sum += kept
                falling_sum += falling
            guess, under, above, mass, slope, turn = l1_search(
                guess, under, above, mass, slope, turn, tl.sum(kept_sum, 0),
                tl.sum(falling_sum, 0), radius, DTYPE,
            )  # fmt: skip
        t, correction, outside = l1_search_end(under, above, mass, slope, radius, DTYPE)

        for start in range(0, D, BLOCK):
            e = start + offset
            mask = e < D
            x_adv = tl.load(x_adv_ptr + base + e, mask=mask, other=0.0).to(DTYPE)
            x = tl.load(x_ptr + base + e, mask=mask, other=0.0).to(DTYPE)
            move = tl.zeros([BLOCK], DTYPE)
            if ASCEND:
                d = direction_chunk(
                    grad_ptr, momentum_ptr, std_ptr, base, e, sum_abs, mu,
                    D, INNER, MOMENTUM, MODEL_INPUT, CROSS, CHANNELS_LAST, DTYPE,
                )  # fmt: skip
                move = sparse_move(d, float_bits(tl.abs(d), DTYPE), least, found, step, DTYPE)
                if MOMENTUM:
                    stored = d.to(momentum_ptr.dtype.element_ty)
                    tl.store(momentum_ptr + base + e, stored, mask=mask)
            z = l1_shrunk(x_adv - x + move, x, t, correction, low, high)
            moved = clamp_keeping_nan(tl.where(outside, x + z, x_adv + move), low, high)
            stored = moved.to(out_ptr.dtype.element_ty)
            tl.store(out_ptr + base + e, stored, mask=mask)
            if MODEL_INPUT:
                store_model_input(
                    input_ptr + base, stored.to(DTYPE), e, mask, mean_ptr, std_ptr, D, INNER,
                    DTYPE, CROSS, CHANNELS_LAST,
                )  # fmt: skip
