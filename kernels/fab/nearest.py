"""The nearest decision boundary so far, one class at a time: compares and takes over its row."""

import triton
import triton.language as tl

from ..aot import AotCase, argument_types
from ..geometry import ROW_BLOCK, compute_dtype, row_geometry
from ..launching import launch
from ..rounding import divide
from .projection import finite_or_zero, joined, norm_of, norm_part

_DUAL = {"linf": "l1", "l2": "l2", "l1": "linf"}


@triton.jit
def fab_nearest_kernel(
    nearest_ptr, nearest_difference_ptr, ratio_ptr, grad_ptr, difference_ptr, labels_ptr,
    guard: "fp64", candidate, D,  # noqa: F821
    DUAL: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row a program, in chunks: read for its dual norm, and again where it is taken over."""
    row = tl.program_id(0).to(tl.int64)
    base = row * D
    offset = tl.arange(0, BLOCK)
    if tl.load(labels_ptr + row) != candidate:
        parts = tl.zeros([BLOCK], DTYPE)
        for start in range(0, D, BLOCK):
            e = start + offset
            w = tl.load(grad_ptr + base + e, mask=e < D, other=0.0).to(DTYPE)
            parts = joined(parts, norm_part(finite_or_zero(w), DUAL), DUAL)
        difference = tl.load(difference_ptr + row)
        value = tl.abs(difference).to(DTYPE)
        length = norm_of(parts, DUAL, DTYPE) + tl.full([], guard, DTYPE)
        value = divide(value, length, DTYPE)
        if value < tl.load(ratio_ptr + row):
            for start in range(0, D, BLOCK):
                e = start + offset
                w = tl.load(grad_ptr + base + e, mask=e < D, other=0.0)
                tl.store(nearest_ptr + base + e, w, mask=e < D)
            tl.debug_barrier()  # every warp has read the ratio before one thread writes it
            tl.store(ratio_ptr + row, value)
            tl.store(nearest_difference_ptr + row, difference)


def launch_fab_nearest(
    nearest, nearest_difference, ratio, grad, difference, labels, candidate, norm, *, guard
):
    """One launch over dense rows that share a layout."""
    if grad.numel() == 0:
        return
    batch = grad.shape[0]
    size = grad.numel() // batch
    block, warps = row_geometry(size, ROW_BLOCK)
    launch(
        fab_nearest_kernel, batch,
        (nearest, nearest_difference, ratio, grad, difference, labels, guard, candidate, size),
        num_warps=warps, DUAL=_DUAL[norm], DTYPE=compute_dtype(grad), BLOCK=block,
    )  # fmt: skip


def aot_cases():
    """Every norm of an image's row."""
    types = argument_types(fab_nearest_kernel)
    block, warps = row_geometry(3072, ROW_BLOCK)
    return [
        AotCase(
            f"nearest_{norm}", fab_nearest_kernel, types,
            dict(DUAL=dual, DTYPE=tl.float32, BLOCK=block), warps, ("candidate",), vectorised=True,
        )
        for norm, dual in _DUAL.items()
    ]  # fmt: skip
