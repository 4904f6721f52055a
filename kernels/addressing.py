"""Where an element of a sample lies: per-sample parameters, channels, the other layout."""

import triton
import triton.language as tl

from .rounding import divide


@triton.jit
def scalar_or_row(scalar, rows_ptr, row, PER_SAMPLE: tl.constexpr, DTYPE: tl.constexpr):
    """`scalar`, or element `row` of a (B,) tensor, as DTYPE."""
    if PER_SAMPLE:
        value = tl.load(rows_ptr + row).to(DTYPE)
    else:
        value = tl.full([], scalar, DTYPE)
    return value


@triton.jit
def box_of(box_ptr, row, D, BOX: tl.constexpr):
    """The box of a row: box_ptr + row * BOX * D, by steps of D, of which the compiler concludes no
    wider accesses than of the other tensors: it would exchange values between lanes."""
    for _ in tl.static_range(BOX):
        box_ptr += row * D
    return box_ptr


@triton.jit
def load_bounds(box_ptr, e, mask, D, DTYPE: tl.constexpr):
    """(lower, upper) of elements e, from the box of a row: see `fastadv.kernels.box`."""
    low = tl.load(box_ptr + e, mask=mask).to(DTYPE)
    high = tl.load(box_ptr + D + e, mask=mask).to(DTYPE)
    return low, high


@triton.jit
def movable_grad(g, box_ptr, e, mask, D, DTYPE: tl.constexpr):
    """g, 0 where the bounds of an element meet."""
    low, high = load_bounds(box_ptr, e, mask, D, DTYPE)
    return tl.where(low < high, g, 0.0)


@triton.jit
def load_unit(box_ptr, e, mask, D, DTYPE: tl.constexpr):
    """What elements e are measured in, from the box of a row that has units."""
    if mask is None:
        unit = tl.load(box_ptr + D + D + e).to(DTYPE)
    else:
        unit = tl.load(box_ptr + D + D + e, mask=mask, other=1.0).to(DTYPE)
    return unit


@triton.jit
def other_layout(e, D, INNER):
    """Offset of element e in the other layout (NCHW <-> NHWC) of a sample of D elements.

    INNER is the extent that varies fastest here: H*W in NCHW, C in NHWC.
    """
    return (e % INNER) * (D // INNER) + e // INNER


@triton.jit
def channel(e, INNER, CHANNELS_LAST: tl.constexpr):
    if CHANNELS_LAST:
        c = e % INNER
    else:
        c = e // INNER
    return c


@triton.jit
def load_grad(
    grad_ptr, e, mask, std_ptr, D, INNER,
    DTYPE: tl.constexpr, RESCALE: tl.constexpr, CROSS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """dL/dx_adv of elements e, NaN as 0: read from the model input's layout if CROSS and divided by
    std if RESCALE, because the gradient of (x_adv - mean) / std is 1 / std."""
    if CROSS:
        g = tl.load(grad_ptr + other_layout(e, D, INNER), mask=mask, other=0.0).to(DTYPE)
    else:
        g = tl.load(grad_ptr + e, mask=mask, other=0.0).to(DTYPE)
    if RESCALE:
        std = tl.load(std_ptr + channel(e, INNER, CHANNELS_LAST), mask=mask, other=1.0).to(DTYPE)
        g = divide(g, std, DTYPE)
    return tl.where(g == g, g, 0.0)


@triton.jit
def store_model_input(
    input_ptr, value, e, mask, mean_ptr, std_ptr, D, INNER,
    DTYPE: tl.constexpr, CROSS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """Store (value - mean) / std, cast to the model's dtype, in the model's layout."""
    c = channel(e, INNER, CHANNELS_LAST)
    mean = tl.load(mean_ptr + c, mask=mask, other=0.0).to(DTYPE)
    std = tl.load(std_ptr + c, mask=mask, other=1.0).to(DTYPE)
    normalised = divide(value - mean, std, DTYPE)
    if DTYPE == tl.float64 and input_ptr.dtype.element_ty != tl.float64:
        normalised = normalised.to(tl.float32)  # torch casts fp64 to half through fp32
    if CROSS:
        e = other_layout(e, D, INNER)
    tl.store(input_ptr + e, normalised.to(input_ptr.dtype.element_ty), mask=mask)
