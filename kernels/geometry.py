"""Launch parameters as a committed table: a function of a sample's size only, never autotuned."""

import functools

import triton.language as tl

ROW_BLOCK = 4096  # the longest row, or chunk of a row, that one program holds in registers
LONG_ROW = 2048, 16  # one program reads a whole row: as many loads in flight as fit
# by BLOCK; with 8, the L2 step with momentum and a model input in the other layout spills or takes
# 245 registers
_HELD_WARPS = {4096: 16, 8192: 16}


def power_of_two(n):
    """The smallest that is at least n; plain integers: triton's own takes 2 us of a launch."""
    return 1 << (n - 1).bit_length()


def blocks(size, block):
    """How many blocks hold `size` elements."""
    return -(-size // block)


@functools.cache
def elementwise_geometry(size):
    """(BLOCK, num_warps) of an elementwise kernel over rows of `size`."""
    block = min(1024, max(128, power_of_two(size)))
    return block, max(1, block // 256)  # 8 elements a thread: two 128-bit fp32 accesses


@functools.cache
def row_geometry(size, limit=ROW_BLOCK):
    """(BLOCK, num_warps) of a kernel in which one program reduces a row of `size`."""
    block = min(limit, max(128, power_of_two(size)))
    return block, min(8, max(1, block // 256))


def held_row_geometry(size, limit):
    """`row_geometry` of a kernel that holds several tensors of the row in registers."""
    block, warps = row_geometry(size, limit)
    return block, _HELD_WARPS.get(block, warps)


def row_kernel(size, limit, short, long):
    """(kernel, BLOCK, num_warps): `short` holds rows up to `limit` in registers; of longer ones
    `long`, a kernel and its geometry, reads a chunk at a time, anew in each pass."""
    if size > limit:
        kernel, (block, warps) = long
        return kernel, block, warps
    return short, *held_row_geometry(size, limit)


def compute_dtype(tensor):
    """fp64 tensors are computed in fp64, all others in fp32."""
    return dtype_of_size(tensor.element_size())


def dtype_of_size(element_size):
    """`compute_dtype` of tensors whose elements have so many bytes."""
    return tl.float64 if element_size == 8 else tl.float32
