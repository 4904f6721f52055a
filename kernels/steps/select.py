"""Row select: copies the rows of a batch whose flag is set, in one launch."""

import triton
import triton.language as tl

from ..aot import AotCase, argument_types
from ..geometry import blocks, elementwise_geometry
from ..launching import launch


@triton.jit
def select_rows_kernel(
    destination_ptr, source_ptr, flags_ptr, D, flags_stride, BLOCK: tl.constexpr
):  # fmt: skip
    """One block of one row."""
    blocks = tl.cdiv(D, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    start = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK
    base = row * D + start
    offset = tl.arange(0, BLOCK)
    if tl.load(flags_ptr + row * flags_stride) != 0:
        if start + BLOCK <= D:
            # full blocks unmasked: with D not divisible by 16 a mask forces 32-bit accesses
            value = tl.load(source_ptr + base + offset)
            tl.store(destination_ptr + base + offset, value)
        else:
            mask = start + offset < D
            value = tl.load(source_ptr + base + offset, mask=mask)
            tl.store(destination_ptr + base + offset, value, mask=mask)


def launch_select_rows(destination, source, flags):
    """Launch over dense rows that share a layout; one launch."""
    if destination.numel() == 0:
        return
    batch = destination.shape[0]
    size = destination.numel() // batch
    block, warps = elementwise_geometry(size)
    launch(
        select_rows_kernel, batch * blocks(size, block),
        (destination, source, flags, size, flags.stride(0)),
        num_warps=warps, BLOCK=block,
    )  # fmt: skip


def aot_cases():
    """Image rows, aligned and not, and half precision."""
    block, warps = elementwise_geometry(3072)
    types = argument_types(select_rows_kernel, flags_ptr="*i32")
    half = dict(destination_ptr="*bf16", source_ptr="*bf16")
    constants = dict(BLOCK=block)
    column = ("flags_stride",)  # 5: the width of the slot state
    return [
        AotCase(
            "select", select_rows_kernel, types, constants, warps, column, vectorised=True
        ),
        AotCase(
            "select_bf16", select_rows_kernel, types | half, constants, warps, column,
            vectorised=True,
        ),
        AotCase(
            "select_unaligned", select_rows_kernel, types, constants, warps, ("D", *column)
        ),
    ]  # fmt: skip
