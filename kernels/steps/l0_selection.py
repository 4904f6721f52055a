"""What an L0 step moves: where elements lie, what moving them gains, and which are kept."""

import triton
import triton.language as tl

from ..addressing import load_grad
from ..rounding import divide
from .l1_projection import float_bits
from .momentum import updated_momentum


@triton.jit
def places(c, p, POSITIONS, D, INNER, CHANNELS_LAST: tl.constexpr):
    """Offset of channel c at position p in a sample. Ties are broken in the order of (c, p), which
    is that of NCHW, in every layout."""
    e = c * POSITIONS + p
    if CHANNELS_LAST:
        e = (e % (D // INNER)) * INNER + e // (D // INNER)
    return e


@triton.jit
def direction_of(
    grad_ptr, momentum_ptr, std_ptr, base, e, mask, sum_abs, decay, D, INNER,
    MOMENTUM: tl.constexpr, MODEL_INPUT: tl.constexpr, CROSS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """The gradient of elements e, or the momentum after this step (not stored); 0 where masked."""
    d = load_grad(
        grad_ptr + base, e, mask, std_ptr, D, INNER, DTYPE, MODEL_INPUT, CROSS, CHANNELS_LAST
    )
    if MOMENTUM:
        d = updated_momentum(momentum_ptr + base, e, mask, d, sum_abs, D, decay, DTYPE)
    return d


@triton.jit
def scaled(d, largest, DTYPE: tl.constexpr):
    """d / largest, in [-1, 1]; of zeros 0. largest: of |d|, at most `most`."""
    most = most_of(DTYPE)
    finite = tl.minimum(tl.maximum(d, -most), most)
    return divide(finite, tl.where(largest > 0, largest, 1.0), DTYPE)


@triton.jit
def most_of(DTYPE: tl.constexpr):
    """The largest finite number."""
    if DTYPE == tl.float32:
        most = tl.full([], 3.4028234663852886e38, DTYPE)
    else:
        most = tl.full([], 1.7976931348623157e308, DTYPE)
    return most


@triton.jit
def moved_with_gain(x_adv, x, unit, step, lo, hi):
    """(where an element goes, what that gains over x: far^2 - (far - near)^2)."""
    z = x_adv + step * unit
    moved = tl.minimum(tl.maximum(z, lo), hi)
    near, far = moved - x, z - x
    gain = near * (2.0 * far - near)
    return moved, tl.where(gain > 0, gain, 0.0)


@triton.jit
def kept_of(bits, least, found, count, above, before):
    """Which of a row are moved: the `count` largest, of equals the first. least, found: as
    `least_kept_bits` gives them; above: how many exceed it; before: how many equal it in front."""
    tie = (bits == least).to(tl.int32)
    rank = before + tl.cumsum(tie, 0)
    return (bits > least) | ((tie != 0) & ((found <= count) | (rank <= count - above)))


@triton.jit
def gain_bits(gain, DTYPE: tl.constexpr):
    """The bits of the gains of positions, from those of (channels, positions)."""
    return float_bits(tl.sum(gain, 0), DTYPE)
