"""APGD's L-infinity step: bookkeeping of best and hit, two projections, momentum; one launch."""

import triton
import triton.language as tl

from ..addressing import box_of, load_bounds, load_unit
from ..aot import AotCase, argument_types
from ..box import planes
from ..geometry import blocks, compute_dtype, elementwise_geometry
from ..launching import launch
from ..rounding import clamp_keeping_nan
from ..steps.linf import ascended_linf, step_and_project_linf
from .progress_step import is_active, misclassified, turn_of


@triton.jit
def apgd_linf_block(
    x_adv_ptr, x_previous_ptr, x_best_ptr, grad_best_ptr, grad_ptr, x_ptr, x_hit_ptr,
    offset, mask, first, improved, restore, hit, step, radius, lo, hi, box_ptr, D,
    HIT: tl.constexpr, BOX: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """The elements at `offset` of one row."""
    evaluated = tl.load(x_adv_ptr + offset, mask=mask)
    g = tl.load(grad_ptr + offset, mask=mask)
    if BOX:
        low, high = load_bounds(box_ptr, offset, mask, D, DTYPE)
    else:
        x = tl.load(x_ptr + offset, mask=mask).to(DTYPE)
    previous = tl.load(x_previous_ptr + offset, mask=mask).to(DTYPE)
    z = evaluated
    if improved:
        tl.store(x_best_ptr + offset, evaluated, mask=mask)
        tl.store(grad_best_ptr + offset, g, mask=mask)
    if HIT:
        if hit:
            tl.store(x_hit_ptr + offset, evaluated, mask=mask)
    if restore:
        z = tl.load(x_best_ptr + offset, mask=mask)
        g = tl.load(grad_best_ptr + offset, mask=mask)
    tl.store(x_previous_ptr + offset, z, mask=mask)
    z = z.to(DTYPE)
    if BOX == 3:
        step = step * load_unit(box_ptr, offset, mask, D, DTYPE)
    if BOX:
        ascended = clamp_keeping_nan(ascended_linf(z, g.to(DTYPE), step), low, high)
    else:
        ascended = step_and_project_linf(z, g.to(DTYPE), x, step, radius, lo, hi)
    share = tl.where(first, 1.0, 0.75).to(DTYPE)
    inertia = tl.where(first, 0.0, (z - previous) * 0.25)  # of the start iterate: undefined
    moved = z + (ascended - z) * share + inertia
    if BOX:
        moved = clamp_keeping_nan(moved, low, high)
    else:
        moved = clamp_keeping_nan(clamp_keeping_nan(moved, x - radius, x + radius), lo, hi)
    tl.store(x_adv_ptr + offset, moved.to(x_adv_ptr.dtype.element_ty), mask=mask)


@triton.jit
def apgd_linf_kernel(
    x_adv_ptr, x_previous_ptr, x_best_ptr, grad_best_ptr, grad_ptr, x_ptr, x_hit_ptr,
    step_size_ptr, eps_ptr, slots_ptr, progress_ptr, correct_ptr, box_ptr,
    lo: "fp64", hi: "fp64", D,  # noqa: F821
    HIT: tl.constexpr, BOX: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One block of one row."""
    blocks = tl.cdiv(D, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    start = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK
    # 64-bit base, 32-bit offsets: more than 2^31 elements and still 128-bit accesses
    base = row * D + start
    offset = tl.arange(0, BLOCK)
    if is_active(slots_ptr, row):
        first, improved, restore = turn_of(slots_ptr, progress_ptr, row)
        hit = first
        if HIT:
            hit = misclassified(correct_ptr, row)
            x_hit_ptr += base
        step = tl.load(step_size_ptr + row).to(DTYPE)
        radius = tl.load(eps_ptr + row).to(DTYPE)
        low = tl.full([], lo, DTYPE)
        high = tl.full([], hi, DTYPE)
        if BOX:
            box_ptr = box_of(box_ptr, row, D, BOX) + start
        if start + BLOCK <= D:
            # full blocks unmasked: with D not divisible by 16 a mask forces 32-bit accesses
            apgd_linf_block(
                x_adv_ptr + base, x_previous_ptr + base, x_best_ptr + base, grad_best_ptr + base,
                grad_ptr + base, x_ptr + base, x_hit_ptr, offset, None,
                first, improved, restore, hit, step, radius, low, high, box_ptr, D,
                HIT, BOX, DTYPE,
            )  # fmt: skip
        else:
            apgd_linf_block(
                x_adv_ptr + base, x_previous_ptr + base, x_best_ptr + base, grad_best_ptr + base,
                grad_ptr + base, x_ptr + base, x_hit_ptr, offset, start + offset < D,
                first, improved, restore, hit, step, radius, low, high, box_ptr, D,
                HIT, BOX, DTYPE,
            )  # fmt: skip


def launch_apgd_linf(
    x_adv, x_previous, x_best, grad_best, grad, x, step_size, eps, lo, hi, slot_state,
    progress, correct, x_hit, box,
):  # fmt: skip
    """Launch over dense rows that share a layout; one launch."""
    if x_adv.numel() == 0:
        return
    batch = x_adv.shape[0]
    size = x_adv.numel() // batch
    block, warps = elementwise_geometry(size)
    launch(
        apgd_linf_kernel, batch * blocks(size, block),
        (x_adv, x_previous, x_best, grad_best, grad, x, x_hit, step_size, eps, slot_state,
         progress, correct, box, lo, hi, size),
        num_warps=warps, HIT=x_hit is not None, BOX=planes(box), DTYPE=compute_dtype(x_adv),
        BLOCK=block,
    )  # fmt: skip


def step_types():
    """Argument types of the APGD steps of both norms: single, and images in half precision."""
    types = argument_types(apgd_linf_kernel)
    scalars = ("step_size_ptr", "eps_ptr", "progress_ptr", "box_ptr")
    half = {n: "*bf16" for n, t in types.items() if t == "*fp32" and n not in scalars}
    return types, types | half


def aot_cases():
    """With and without hits, half precision, and rows that 16 does not divide."""
    types, half = step_types()
    block, warps = elementwise_geometry(3072)
    plain = dict(HIT=False, BOX=0, DTYPE=tl.float32, BLOCK=block)
    hits = plain | dict(HIT=True)
    kernel = apgd_linf_kernel
    return [
        AotCase("apgd_linf", kernel, types, plain, warps, vectorised=True),
        AotCase("apgd_linf_hit", kernel, types, hits, warps, vectorised=True),
        AotCase("apgd_linf_hit_bf16", kernel, half, hits, warps, vectorised=True),
        AotCase("apgd_linf_unaligned", kernel, types, hits, warps, unaligned=("D",)),
    ]
