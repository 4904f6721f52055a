"""A proposal of the Square Attack in L2 or L1; device functions.

It moves the norm of two windows into a pyramid in the first one, then scales the whole image (L2)
or projects it (L1). A tile is (channels, pixels): sums over a window are sums of its rows. Images
that are longer than a tile are read anew, tile by tile, in each pass.
"""

import triton
import triton.language as tl

from ..noise import streams
from ..noise.philox import draw_words, sign
from ..rounding import clamp_keeping_nan, divide, root
from ..steps.l1_projection import (
    l1_kept,
    l1_room,
    l1_search,
    l1_search_end,
    l1_search_start,
    l1_shrunk,
)

_SIGN = tl.constexpr(streams.SQUARE_SIGN)
_TINY = tl.constexpr(1e-12)  # the authors' guard against 0/0
_L1_SHARE = tl.constexpr(1.0 - 1e-6)  # of eps: the authors' margin for rounding


@triton.jit
def tile_offset(
    start, C, AREA, CHANNELS_LAST: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr
):  # fmt: skip
    """(offsets in the image (CHANNELS, PIXELS), inside, pixels (1, PIXELS))."""
    c = tl.arange(0, CHANNELS)[:, None]
    pixel = start + tl.arange(0, PIXELS)[None, :]
    if CHANNELS_LAST:
        offset = pixel * C + c
    else:
        offset = c * AREA + pixel
    return offset, (c < C) & (pixel < AREA), pixel


@triton.jit
def window_tile(pixel, AREA, W, geometry_ptr, patterns_ptr):
    """(in the first window, in the second, the pyramid's values) of pixels."""
    top = tl.load(geometry_ptr)
    left = tl.load(geometry_ptr + 1)
    side = tl.load(geometry_ptr + 4)
    turned = tl.load(geometry_ptr + 5) != 0
    line = pixel // W - top
    column = pixel % W - left
    inside = (line >= 0) & (line < side) & (column >= 0) & (column < side) & (pixel < AREA)
    e = tl.where(turned, column * side + line, line * side + column)
    pattern = tl.load(patterns_ptr + e, mask=inside, other=0.0)
    line = pixel // W - tl.load(geometry_ptr + 2)
    column = pixel % W - tl.load(geometry_ptr + 3)
    other = (line >= 0) & (line < side) & (column >= 0) & (column < side)
    return inside, other, pattern


@triton.jit
def magnitude(value, NORM: tl.constexpr):
    if NORM == "l2":
        size = value * value
    else:
        size = tl.abs(value)
    return size


@triton.jit
def norm_of(total, NORM: tl.constexpr, DTYPE: tl.constexpr):
    if NORM == "l2":
        total = root(total, DTYPE)
    return total


@triton.jit
def channel_signs(seed, sample_id, draw, CHANNELS: tl.constexpr, DTYPE: tl.constexpr):
    """(CHANNELS, 1) random signs: element = channel."""
    c = tl.arange(0, CHANNELS)
    w0, w1, w2, w3 = draw_words(seed, sample_id, draw, c // 4, _SIGN)
    lane = c % 4
    word = tl.where(lane == 0, w0, tl.where(lane == 1, w1, tl.where(lane == 2, w2, w3)))
    return sign(word).to(DTYPE)[:, None]


@triton.jit
def pyramid(delta, pattern, signs, inverse, DTYPE: tl.constexpr):
    """The window's new content before it is scaled: inverse is 1 / ||delta|| there."""
    return pattern.to(DTYPE) * signs + delta * inverse[:, None]


@triton.jit
def moved_tile(
    best_ptr, x_ptr, start, geometry_ptr, patterns_ptr, signs, inverse, scale,
    C, AREA, W, NORM: tl.constexpr, CHANNELS_LAST: tl.constexpr, DTYPE: tl.constexpr,
    CHANNELS: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """(the moved delta of a tile, x, offsets, inside)."""
    offset, inside, pixel = tile_offset(start, C, AREA, CHANNELS_LAST, CHANNELS, PIXELS)
    x = tl.load(x_ptr + offset, mask=inside, other=0.0).to(DTYPE)
    delta = tl.load(best_ptr + offset, mask=inside, other=0.0).to(DTYPE) - x
    first, second, pattern = window_tile(pixel, AREA, W, geometry_ptr, patterns_ptr)
    new = pyramid(delta, pattern, signs, inverse, DTYPE) * scale[:, None]
    moved = tl.where(first, new, tl.where(second, 0.0, delta))
    return tl.where(inside, moved, 0.0), x, offset, inside


@triton.jit
def window_sums(
    best_ptr, x_ptr, geometry_ptr, patterns_ptr, signs, eps, C, AREA, W,
    NORM: tl.constexpr, CHANNELS_LAST: tl.constexpr, DTYPE: tl.constexpr,
    CHANNELS: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """(inverse, scale), (CHANNELS,) each: of the old content's norm in the window, and of the new
    content, which gets the norm of both windows and its part of what the image leaves of eps."""
    image = tl.zeros([CHANNELS], DTYPE)
    window = tl.zeros([CHANNELS], DTYPE)
    union = tl.zeros([CHANNELS], DTYPE)
    for start in range(0, AREA, PIXELS):
        offset, inside, pixel = tile_offset(start, C, AREA, CHANNELS_LAST, CHANNELS, PIXELS)
        x = tl.load(x_ptr + offset, mask=inside, other=0.0).to(DTYPE)
        delta = tl.load(best_ptr + offset, mask=inside, other=0.0).to(DTYPE) - x
        first, second, pattern = window_tile(pixel, AREA, W, geometry_ptr, patterns_ptr)
        size = magnitude(delta, NORM)
        image += tl.sum(size, 1)
        window += tl.sum(tl.where(first, size, 0.0), 1)
        union += tl.sum(tl.where(first | second, size, 0.0), 1)
    image_norm = norm_of(tl.sum(image, 0), NORM, DTYPE)
    inverse = divide(tl.full([], 1.0, DTYPE), norm_of(window, NORM, DTYPE) + _TINY, DTYPE)
    union = norm_of(union, NORM, DTYPE)
    own = tl.zeros([CHANNELS], DTYPE)
    for start in range(0, AREA, PIXELS):
        offset, inside, pixel = tile_offset(start, C, AREA, CHANNELS_LAST, CHANNELS, PIXELS)
        x = tl.load(x_ptr + offset, mask=inside, other=0.0).to(DTYPE)
        delta = tl.load(best_ptr + offset, mask=inside, other=0.0).to(DTYPE) - x
        first, second, pattern = window_tile(pixel, AREA, W, geometry_ptr, patterns_ptr)
        new = pyramid(delta, pattern, signs, inverse, DTYPE)
        own += tl.sum(tl.where(first & inside, magnitude(new, NORM), 0.0), 1)
    channels = tl.full([], 1, DTYPE) * C
    if NORM == "l2":
        left = tl.maximum(eps * eps - image_norm * image_norm, 0.0)
        share = root(divide(left, channels, DTYPE) + union * union, DTYPE)
    else:
        left = tl.maximum(eps - image_norm, 0.0)
        share = (divide(left, channels, DTYPE) + union) * channels
    return inverse, divide(share, norm_of(own, NORM, DTYPE) + _TINY, DTYPE)


@triton.jit
def write_proposal(
    new_ptr, best_ptr, x_ptr, geometry_ptr, patterns_ptr, signs, eps, lo, hi, C, AREA, W,
    NORM: tl.constexpr, CHANNELS_LAST: tl.constexpr, DTYPE: tl.constexpr,
    CHANNELS: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """One row of x_new."""
    inverse, scale = window_sums(
        best_ptr, x_ptr, geometry_ptr, patterns_ptr, signs, eps, C, AREA, W, NORM, CHANNELS_LAST,
        DTYPE, CHANNELS, PIXELS,
    )  # fmt: skip
    if NORM == "l2":
        total = tl.zeros([CHANNELS], DTYPE)
        for start in range(0, AREA, PIXELS):
            u, x, offset, inside = moved_tile(
                best_ptr, x_ptr, start, geometry_ptr, patterns_ptr, signs, inverse, scale,
                C, AREA, W, NORM, CHANNELS_LAST, DTYPE, CHANNELS, PIXELS,
            )  # fmt: skip
            total += tl.sum(u * u, 1)
        factor = divide(eps, root(tl.sum(total, 0), DTYPE) + _TINY, DTYPE)
        for start in range(0, AREA, PIXELS):
            u, x, offset, inside = moved_tile(
                best_ptr, x_ptr, start, geometry_ptr, patterns_ptr, signs, inverse, scale,
                C, AREA, W, NORM, CHANNELS_LAST, DTYPE, CHANNELS, PIXELS,
            )  # fmt: skip
            moved = clamp_keeping_nan(x + u * factor, lo, hi)
            tl.store(new_ptr + offset, moved.to(new_ptr.dtype.element_ty), mask=inside)
    else:
        radius = eps * tl.full([], _L1_SHARE, DTYPE)
        guess, under, above, mass, slope, turn = l1_search_start(DTYPE)
        while guess >= 0:
            kept_sum = tl.zeros([CHANNELS], DTYPE)
            falling_sum = tl.zeros([CHANNELS], DTYPE)
            for start in range(0, AREA, PIXELS):
                u, x, offset, inside = moved_tile(
                    best_ptr, x_ptr, start, geometry_ptr, patterns_ptr, signs, inverse, scale,
                    C, AREA, W, NORM, CHANNELS_LAST, DTYPE, CHANNELS, PIXELS,
                )  # fmt: skip
                kept, falling = l1_kept(
                    tl.abs(u), l1_room(u, x, lo, hi), guess.to(DTYPE, bitcast=True)
                )
                kept_sum += tl.sum(kept, 1)
                falling_sum += tl.sum(falling, 1)
            guess, under, above, mass, slope, turn = l1_search(
                guess, under, above, mass, slope, turn, tl.sum(kept_sum, 0),
                tl.sum(falling_sum, 0), radius, DTYPE,
            )  # fmt: skip
        t, correction, outside = l1_search_end(under, above, mass, slope, radius, DTYPE)
        for start in range(0, AREA, PIXELS):
            u, x, offset, inside = moved_tile(
                best_ptr, x_ptr, start, geometry_ptr, patterns_ptr, signs, inverse, scale,
                C, AREA, W, NORM, CHANNELS_LAST, DTYPE, CHANNELS, PIXELS,
            )  # fmt: skip
            u = tl.where(outside, l1_shrunk(u, x, t, correction, lo, hi), u)
            moved = clamp_keeping_nan(x + u, lo, hi)
            tl.store(new_ptr + offset, moved.to(new_ptr.dtype.element_ty), mask=inside)
