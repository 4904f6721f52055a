"""Launch parameters as a committed table: a function of a sample's size only, never autotuned."""

import triton
import triton.language as tl

ROW_BLOCK = 4096  # the longest row, or chunk of a row, that one program holds in registers


def elementwise_geometry(size):
    """(BLOCK, num_warps) of an elementwise kernel over rows of `size`."""
    block = min(1024, max(128, triton.next_power_of_2(size)))
    return block, max(1, block // 256)  # 8 elements a thread: two 128-bit fp32 accesses


def row_geometry(size, limit=ROW_BLOCK):
    """(BLOCK, num_warps) of a kernel in which one program reduces a row of `size`."""
    block = min(limit, max(128, triton.next_power_of_2(size)))
    return block, min(8, max(1, block // 256))


def compute_dtype(tensor):
    """fp64 tensors are computed in fp64, all others in fp32."""
    return tl.float64 if tensor.element_size() == 8 else tl.float32
