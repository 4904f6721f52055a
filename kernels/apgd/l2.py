"""APGD's L2 step: bookkeeping of best and hit, two projections, momentum; one launch."""

import triton
import triton.language as tl

from ..addressing import box_of, movable_grad
from ..aot import AotCase
from ..box import planes
from ..geometry import LONG_ROW, compute_dtype, row_kernel
from ..launching import launch
from ..rounding import clamp_keeping_nan, root
from .l2_long import (
    apgd_l2_long_kernel,
    ascended_offset,
    ball_factor,
    bounds_chunk,
    finite_factor,
    squared,
    unit_chunk,
    with_momentum,
)
from .linf import step_types
from .progress_step import is_active, misclassified, turn_of

ROW_LIMIT = 8192  # the longest row that one program holds on chip
BOX_ROW_LIMIT = 2048  # and with its box: 4096 spills 8 bytes


@triton.jit
def apgd_l2_kernel(
    x_adv_ptr, x_previous_ptr, x_best_ptr, grad_best_ptr, grad_ptr, x_ptr, x_hit_ptr,
    step_size_ptr, eps_ptr, slots_ptr, progress_ptr, correct_ptr, box_ptr,
    lo: "fp64", hi: "fp64", D,  # noqa: F821
    HIT: tl.constexpr, BOX: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One sample a program, its row in registers: every tensor is read once."""
    row = tl.program_id(0).to(tl.int64)
    base = row * D
    e = tl.arange(0, BLOCK)
    mask = e < D
    if is_active(slots_ptr, row):
        first, improved, restore = turn_of(slots_ptr, progress_ptr, row)
        step = tl.load(step_size_ptr + row).to(DTYPE)
        radius = tl.load(eps_ptr + row).to(DTYPE)
        low = tl.full([], lo, DTYPE)
        high = tl.full([], hi, DTYPE)
        if BOX:
            box_ptr = box_of(box_ptr, row, D, BOX)
        unit = unit_chunk(box_ptr, e, mask, D, BOX, DTYPE)
        z = tl.load(x_adv_ptr + base + e, mask=mask, other=0.0)
        g = tl.load(grad_ptr + base + e, mask=mask, other=0.0)
        if improved:
            tl.store(x_best_ptr + base + e, z, mask=mask)
            tl.store(grad_best_ptr + base + e, g, mask=mask)
        if HIT:
            if misclassified(correct_ptr, row):
                tl.store(x_hit_ptr + base + e, z, mask=mask)
        if restore:
            z = tl.load(x_best_ptr + base + e, mask=mask, other=0.0)
            g = tl.load(grad_best_ptr + base + e, mask=mask, other=0.0)
        g = g.to(DTYPE)
        g = tl.where(g == g, g, 0.0)
        if BOX:
            g = movable_grad(g, box_ptr, e, mask, D, DTYPE)
        if BOX == 3:
            g *= unit
        factor, finite = finite_factor(tl.sum(g * g, 0), step, DTYPE)
        if BOX == 3:
            g *= unit
        x = tl.load(x_ptr + base + e, mask=mask, other=0.0).to(DTYPE)
        u = ascended_offset(z.to(DTYPE), g, x, factor, finite)
        shrink = ball_factor(root(tl.sum(squared(u, unit, DTYPE), 0), DTYPE), radius, DTYPE)
        previous = tl.load(x_previous_ptr + base + e, mask=mask, other=0.0).to(DTYPE)
        least, most = bounds_chunk(box_ptr, low, high, e, mask, D, BOX, DTYPE)
        w = with_momentum(z.to(DTYPE), u, x, previous, shrink, first, least, most)
        w = tl.where(mask, w, 0.0)  # bounds without 0 lift the padding
        shrink = ball_factor(root(tl.sum(squared(w, unit, DTYPE), 0), DTYPE), radius, DTYPE)
        least, most = bounds_chunk(box_ptr, low, high, e, mask, D, BOX, DTYPE)  # anew: registers
        moved = clamp_keeping_nan(x + w * shrink, least, most)
        tl.store(x_previous_ptr + base + e, z, mask=mask)
        tl.store(x_adv_ptr + base + e, moved.to(x_adv_ptr.dtype.element_ty), mask=mask)


def _kernel(size, box=0):
    limit = BOX_ROW_LIMIT if box else ROW_LIMIT
    return row_kernel(size, limit, apgd_l2_kernel, (apgd_l2_long_kernel, LONG_ROW))


def launch_apgd_l2(
    x_adv, x_previous, x_best, grad_best, grad, x, step_size, eps, lo, hi, slot_state,
    progress, correct, x_hit, box,
):  # fmt: skip
    """Launch over dense rows that share a layout; one launch."""
    if x_adv.numel() == 0:
        return
    batch = x_adv.shape[0]
    size = x_adv.numel() // batch
    kernel, block, warps = _kernel(size, planes(box))
    launch(
        kernel, batch,
        (x_adv, x_previous, x_best, grad_best, grad, x, x_hit, step_size, eps, slot_state,
         progress, correct, box, lo, hi, size),
        num_warps=warps, HIT=x_hit is not None, BOX=planes(box), DTYPE=compute_dtype(x_adv),
        BLOCK=block,
    )  # fmt: skip


def aot_cases():
    """Image rows, half precision, rows that 16 does not divide, the longest, and longer ones."""
    types, half = step_types()
    row, block, warps = _kernel(3072)
    _, longest, longest_warps = _kernel(ROW_LIMIT)
    long, chunk, long_warps = _kernel(ROW_LIMIT + 1)
    _, boxed, boxed_warps = _kernel(BOX_ROW_LIMIT, 3)
    hits = dict(HIT=True, BOX=0, DTYPE=tl.float32, BLOCK=block)
    wide = dict(vectorised=True)
    return [
        AotCase("apgd_l2", row, types, hits | dict(HIT=False), warps, **wide),
        AotCase("apgd_l2_hit", row, types, hits, warps, **wide),
        AotCase("apgd_l2_hit_bf16", row, half, hits, warps, **wide),
        AotCase("apgd_l2_longest_box_units", row, types, hits | dict(BOX=3, BLOCK=boxed),
                boxed_warps),
        AotCase("apgd_l2_unaligned", row, types, hits, warps, unaligned=("D",)),
        AotCase("apgd_l2_longest_row", row, types, hits | dict(BLOCK=longest), longest_warps,
                **wide),
        AotCase("apgd_l2_long", long, types, hits | dict(BLOCK=chunk), long_warps, **wide),
        AotCase("apgd_l2_long_bf16", long, half, hits | dict(BLOCK=chunk), long_warps),
    ]  # fmt: skip
