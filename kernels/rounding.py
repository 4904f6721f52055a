"""Correctly rounded division and root: `/` and `tl.sqrt` are approximate in fp32 on a GPU."""

import triton
import triton.language as tl


@triton.jit
def divide(a, b, DTYPE: tl.constexpr):
    if DTYPE == tl.float32:
        quotient = tl.div_rn(a, b)
    else:
        quotient = a / b
    return quotient


@triton.jit
def root(a, DTYPE: tl.constexpr):
    if DTYPE == tl.float32:
        value = tl.sqrt_rn(a)
    else:
        value = tl.sqrt(a)
    return value


@triton.jit
def clamp_keeping_nan(value, lo, hi):
    """min(max(value, lo), hi), NaN where value is NaN, as torch.clamp."""
    value = tl.maximum(value, lo, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(value, hi, propagate_nan=tl.PropagateNan.ALL)
