"""L1-APGD's bookkeeping: best, hit, sparsity, step size, phases; the step itself is `l1`'s."""

import triton
import triton.language as tl

from .. import slots
from ..aot import AotCase, argument_types
from ..geometry import compute_dtype, row_geometry
from ..launching import launch
from ..rounding import divide
from .progress_step import is_active, misclassified

_STEP = tl.constexpr(slots.STEP)
_IMPROVED = tl.constexpr(slots.IMPROVED)
_WIDTH = tl.constexpr(slots.WIDTH)
_CHUNK = 2048  # elements read at once
# entries of a plan, as in `apgd_l1_plan`
_CHECK = tl.constexpr(1)
_NEXT_PHASE = tl.constexpr(2)
_GIVEN_START = tl.constexpr(3)
_RANDOM_START = tl.constexpr(4)


@triton.jit
def copy_row(destination_ptr, source_ptr, D, BLOCK: tl.constexpr):
    for start in range(0, D, BLOCK):
        e = start + tl.arange(0, BLOCK)
        value = tl.load(source_ptr + e, mask=e < D)
        tl.store(destination_ptr + e, value, mask=e < D)


@triton.jit
def count_differences(a_ptr, b_ptr, D, DTYPE: tl.constexpr, BLOCK: tl.constexpr):
    """||a - b||_0 of one row."""
    count = tl.zeros([BLOCK], tl.int32)
    for start in range(0, D, BLOCK):
        e = start + tl.arange(0, BLOCK)
        a = tl.load(a_ptr + e, mask=e < D, other=0.0).to(DTYPE)
        b = tl.load(b_ptr + e, mask=e < D, other=0.0).to(DTYPE)
        count += (a != b).to(tl.int32)
    return tl.sum(count, 0)


@triton.jit
def apgd_l1_check_kernel(
    x_adv_ptr, x_best_ptr, grad_best_ptr, grad_ptr, x_ptr, x_hit_ptr,
    step_size_ptr, sparsity_ptr, phase_eps_ptr, support_ptr, eps_ptr, best_loss_ptr,
    slots_ptr, plan_ptr, radius_ptr, correct_ptr, D,
    HIT: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One sample a program; rows are read only where their copies or their support are due."""
    row = tl.program_id(0).to(tl.int64)
    base = row * D
    if is_active(slots_ptr, row):
        # the head has advanced STEP already
        t = tl.load(slots_ptr + row * _WIDTH + _STEP) - 1
        improved = tl.load(slots_ptr + row * _WIDTH + _IMPROVED) != 0
        entry = tl.load(plan_ptr + t)
        size = tl.full([], 1, DTYPE) * D
        ball = tl.load(radius_ptr + t).to(DTYPE) * tl.load(eps_ptr + row).to(DTYPE)
        step = tl.load(step_size_ptr + row).to(DTYPE)
        previous = tl.load(support_ptr + row).to(DTYPE)
        checks = entry == _CHECK
        starts = (entry == _GIVEN_START) | (entry == _RANDOM_START)

        if improved:
            copy_row(x_best_ptr + base, x_adv_ptr + base, D, BLOCK)
            copy_row(grad_best_ptr + base, grad_ptr + base, D, BLOCK)
        if HIT:
            if misclassified(correct_ptr, row):
                copy_row(x_hit_ptr + base, x_adv_ptr + base, D, BLOCK)

        support = size
        if (entry == _GIVEN_START) | (checks & improved):
            support = count_differences(x_adv_ptr + base, x_ptr + base, D, DTYPE, BLOCK).to(DTYPE)
        elif checks:
            support = count_differences(x_best_ptr + base, x_ptr + base, D, DTYPE, BLOCK).to(DTYPE)
        # a support that was 0 divides to NaN or infinity: it has not shrunk
        ratio = divide(support, previous, DTYPE)
        shrunk = checks & (ratio < tl.full([], 0.95, DTYPE))
        if (shrunk | (entry == _NEXT_PHASE)) & (improved == 0):
            tl.debug_barrier()  # x_adv may still be on its way to x_hit, in other threads
            copy_row(x_adv_ptr + base, x_best_ptr + base, D, BLOCK)
            copy_row(grad_ptr + base, grad_best_ptr + base, D, BLOCK)

        decayed = divide(step, tl.full([], 1.5, DTYPE), DTYPE)
        decayed = tl.maximum(decayed, divide(ball, tl.full([], 10.0, DTYPE), DTYPE))
        step = tl.where(checks, tl.where(shrunk, ball, tl.minimum(decayed, ball)), step)
        step = tl.where(starts, ball, step)
        step = tl.where(entry == _NEXT_PHASE, 0.0, step)
        share = divide(divide(support, size, DTYPE), tl.full([], 1.5, DTYPE), DTYPE)
        share = tl.where(entry == _RANDOM_START, tl.full([], 0.2, DTYPE), share)
        tl.debug_barrier()  # every warp has read the state before one thread writes it
        tl.store(step_size_ptr + row, step)
        tl.store(phase_eps_ptr + row, ball)
        tl.store(sparsity_ptr + row, share, mask=checks | starts)
        tl.store(support_ptr + row, support, mask=checks | starts)
        tl.store(best_loss_ptr + row, -float("inf"), mask=entry == _NEXT_PHASE)


def _geometry(size):
    block, _ = row_geometry(size, _CHUNK)
    return block, block // 128  # 4 elements a thread: with 8 ptxas spills at 32 registers


def launch_apgd_l1_check(
    x_adv, x_best, grad_best, grad, x, step_size, sparsity, phase_eps, support, eps, best_loss,
    slot_state, plan, radius, correct, x_hit,
):  # fmt: skip
    """Launch over dense rows that share a layout; one launch."""
    if x_adv.numel() == 0:
        return
    batch = x_adv.shape[0]
    size = x_adv.numel() // batch
    block, warps = _geometry(size)
    launch(
        apgd_l1_check_kernel, batch,
        (x_adv, x_best, grad_best, grad, x, x_hit, step_size, sparsity, phase_eps, support, eps,
         best_loss, slot_state, plan, radius, correct, size),
        num_warps=warps, HIT=x_hit is not None, DTYPE=compute_dtype(x_adv), BLOCK=block,
    )  # fmt: skip


def aot_cases():
    """Image rows with and without hits, half precision, and rows that 16 does not divide."""
    kernel = apgd_l1_check_kernel
    types = argument_types(kernel, plan_ptr="*i32")
    images = ("x_adv_ptr", "x_best_ptr", "grad_best_ptr", "grad_ptr", "x_ptr", "x_hit_ptr")
    block, warps = _geometry(_CHUNK)
    short, short_warps = _geometry(1000)
    plain = dict(HIT=False, DTYPE=tl.float32, BLOCK=block)
    hits = plain | dict(HIT=True)
    return [
        AotCase("apgd_l1_check", kernel, types, plain, warps, vectorised=True),
        AotCase("apgd_l1_check_hit", kernel, types, hits, warps, vectorised=True),
        AotCase(
            "apgd_l1_check_hit_bf16", kernel, types | {n: "*bf16" for n in images}, hits, warps
        ),
        AotCase(
            "apgd_l1_check_short", kernel, types, hits | dict(BLOCK=short), short_warps,
            vectorised=True,
        ),
        AotCase("apgd_l1_check_unaligned", kernel, types, hits, warps, unaligned=("D",)),
    ]  # fmt: skip
