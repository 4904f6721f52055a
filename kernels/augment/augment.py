"""Gathers byte images, crops, flips, scales and casts them, and draws a start; one launch."""

import triton
import triton.language as tl

from ..addressing import channel
from ..aot import AotCase, argument_types
from ..geometry import blocks, elementwise_geometry
from ..launching import launch
from ..noise import streams
from ..noise.philox import draw_words, uniforms
from ..noise.start import row_offset, store_start
from ..rounding import divide

_CROP = tl.constexpr(streams.AUGMENT_CROP)
_FLIP = tl.constexpr(streams.AUGMENT_FLIP)
_START = tl.constexpr(streams.START_UNIFORM)


@triton.jit
def first_words(seed, sample_id, draw, PURPOSE: tl.constexpr):
    """Words of elements 0 and 1 of a sample; scalars."""
    w0, w1, w2, w3 = draw_words(seed, sample_id, draw, tl.full([], 0, tl.int32), PURPOSE)
    return w0, w1


@triton.jit
def crop_offset(word, PAD: tl.constexpr):
    """Uniform in [-PAD, PAD], as `random_integers` of `fastadv.ops.noise.philox`."""
    return ((word.to(tl.int64) * (2 * PAD + 1)) >> 32).to(tl.int32) - PAD


@triton.jit(do_not_specialize=["seed", "start_seed", "draw", "flip_draw", "parity", "start_draw"])
def augment_kernel(
    out_ptr, start_ptr, images_ptr, index_ptr, mean_ptr, std_ptr,
    seed: "i64", start_seed: "i64", N: "i64",  # noqa: F821
    draw: "i32", flip_draw: "i32", parity: "i32", start_draw: "i32",  # noqa: F821
    eps: "fp64", lo: "fp64", hi: "fp64",  # noqa: F821
    CHANNELS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, PAD: tl.constexpr,
    REFLECT: tl.constexpr, FLIP: tl.constexpr, NORMALISE: tl.constexpr, START: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One block of one row. Sizes are constants: a data set has one, and e // WIDTH is dear."""
    D: tl.constexpr = CHANNELS * HEIGHT * WIDTH
    AREA: tl.constexpr = HEIGHT * WIDTH
    blocks = tl.cdiv(D, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    first = (tl.program_id(0) % blocks) * BLOCK
    sample_id = tl.load(index_ptr + row)
    known = (sample_id >= 0) & (sample_id < N)
    # no read outside the set; the row becomes NaN, which every loss head reports
    count = tl.where(known, D, 0)
    poison = tl.where(known, 0.0, float("nan"))

    e = first + tl.arange(0, BLOCK)
    if CHANNELS_LAST and not START:
        # in the order of the output, whose stores are then wide
        c = e % CHANNELS
        pixel = e // CHANNELS
        stored_at = e
    else:
        # in C order, which a start's draws follow
        c = channel(e, AREA, False)
        pixel = e % AREA
        stored_at = row_offset(e, D, AREA, CHANNELS_LAST)
    inside = e < count
    if PAD > 0 or FLIP:
        y = pixel // WIDTH
        x = pixel % WIDTH
        if FLIP:
            word, unused = first_words(seed, sample_id, flip_draw, _FLIP)
            flipped = (word & 1).to(tl.int32) ^ parity
            x += flipped * (WIDTH - 1 - 2 * x)
        if PAD > 0:
            word, other = first_words(seed, sample_id, draw, _CROP)
            y += crop_offset(word, PAD)
            x += crop_offset(other, PAD)
            if REFLECT:
                y = HEIGHT - 1 - tl.abs(HEIGHT - 1 - tl.abs(y))
                x = WIDTH - 1 - tl.abs(WIDTH - 1 - tl.abs(x))
            else:
                inside = inside & (y >= 0) & (y < HEIGHT) & (x >= 0) & (x < WIDTH)
        pixel = y * WIDTH + x
    byte = tl.load(images_ptr + sample_id * D + (c * AREA + pixel), mask=inside, other=0)
    value = divide(byte.to(tl.float32), tl.full([], 255.0, tl.float32), tl.float32) + poison
    if NORMALISE:
        mean = tl.load(mean_ptr + c, mask=e < D, other=0.0)
        std = tl.load(std_ptr + c, mask=e < D, other=1.0)
        value = divide(value - mean, std, tl.float32)
    stored = value.to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row * D + stored_at, stored, mask=e < D)
    if START:
        call = first // 4 + tl.arange(0, BLOCK // 4)
        u = uniforms(start_seed, sample_id, start_draw, call, _START)
        delta = (2.0 * u - 1.0) * tl.full([], eps, tl.float32)
        store_start(
            start_ptr, row * D, e, stored.to(tl.float32), delta, tl.full([], lo, tl.float32),
            tl.full([], hi, tl.float32), D, AREA, CHANNELS_LAST,
        )  # fmt: skip


def launch_augment(
    out, start, images, index, *, seed, draw, pad, reflect, flip, mean, std, start_seed, start_draw,
    eps, lo, hi, channels_last,
):  # fmt: skip
    """Launch one batch; one launch. flip: None, or (draw, parity) of its bit; start may be None."""
    if out.numel() == 0:
        return
    samples, channels, height, width = images.shape
    size = channels * height * width
    block, warps = elementwise_geometry(size)
    flip_draw, parity = (0, 0) if flip is None else flip
    launch(
        augment_kernel, len(index) * blocks(size, block),
        (out, start, images, index, mean, std, seed, start_seed, samples, draw, flip_draw, parity,
         start_draw, eps, lo, hi),
        num_warps=warps, CHANNELS=channels, HEIGHT=height, WIDTH=width, PAD=pad, REFLECT=reflect,
        FLIP=flip is not None, NORMALISE=mean is not None, START=start is not None,
        CHANNELS_LAST=channels_last, BLOCK=block,
    )  # fmt: skip


def aot_cases():
    """The specialisations whose machine code is checked."""
    signature = argument_types(augment_kernel, images_ptr="*u8", index_ptr="*i64")
    half = signature | dict(out_ptr="*bf16", start_ptr="*bf16")
    plain = dict(
        CHANNELS=3, HEIGHT=32, WIDTH=32, PAD=0, REFLECT=False, FLIP=False, NORMALISE=False,
        START=False, CHANNELS_LAST=False,
    )  # fmt: skip
    augmented = dict(PAD=4, FLIP=True)
    full = augmented | dict(START=True)

    def case(name, types, **changes):
        constants = plain | changes
        size = constants["CHANNELS"] * constants["HEIGHT"] * constants["WIDTH"]
        block, warps = elementwise_geometry(size)
        keys = ("seed", "start_seed", "N", "draw", "flip_draw", "parity", "start_draw")
        constants["BLOCK"] = block
        # bytes: never 128 bits a thread; the stores are wide
        return AotCase(f"augment_{name}", augment_kernel, types, constants, warps, unaligned=keys)

    return [
        case("plain", signature),
        case("plain_bf16", half),
        case("crop_flip", signature, **augmented),
        case("reflect_nhwc_bf16", half, REFLECT=True, CHANNELS_LAST=True, **augmented),
        case("normalise", signature, NORMALISE=True, **augmented),
        case("normalise_nhwc_bf16", half, NORMALISE=True, CHANNELS_LAST=True, **augmented),
        case("start", signature, **full),
        case("start_nhwc_bf16", half, CHANNELS_LAST=True, **full),
        case("start_mnist", signature, CHANNELS=1, HEIGHT=28, WIDTH=28, START=True),
        case("start_odd", signature, HEIGHT=33, WIDTH=31, REFLECT=True, **full),
    ]
