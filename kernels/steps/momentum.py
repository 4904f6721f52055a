"""MI-FGSM's momentum: m = decay * m + g / mean|g|."""

import triton
import triton.language as tl

from ..rounding import divide


@triton.jit
def updated_momentum(momentum_ptr, e, mask, g, sum_abs, D, decay, DTYPE: tl.constexpr):
    """decay * m + g / mean|g| of elements e; a zero or infinite mean adds nothing."""
    count = tl.full([], 1, DTYPE) * D
    mean = divide(sum_abs, count, DTYPE)
    usable = (mean > 0) & (mean < float("inf"))
    unit = tl.where(usable, divide(g, tl.where(usable, mean, 1.0), DTYPE), 0.0)
    m = tl.load(momentum_ptr + e, mask=mask, other=0.0).to(DTYPE)
    return decay * m + unit
