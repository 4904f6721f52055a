"""Philox4x32-10 draws as device functions: the bits of `fastadv.ops.noise.philox`, word for word.

Normals and exponentials use only + - * and a correctly rounded root, so that the interpreter, GPUs
and eager torch agree in every bit; kernels that call them are launched with enable_fp_fusion=False.
(`tl.cos` would also bring a 32-byte stack on sm_90.)
"""

import triton
import triton.language as tl

from . import streams

_DRAW_BITS = tl.constexpr(streams.DRAW_BITS)
_DRAW_MASK = tl.constexpr((1 << streams.DRAW_BITS) - 1)


@triton.jit
def draw_words(seed, sample_id, draw, call, PURPOSE: tl.constexpr):
    """Four uint32 words of each call; lane i of call c is element 4 * c + i of the sample.

    seed, sample_id: int64 scalars; draw: an int32 scalar; call: an int32 block.
    """
    seed = seed.to(tl.int64)
    k0 = (seed & 0xFFFFFFFF).to(tl.uint32)
    k1 = ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32)
    c1 = (draw & _DRAW_MASK).to(tl.uint32) | (tl.full([], PURPOSE, tl.uint32) << _DRAW_BITS)
    c2 = (sample_id & 0xFFFFFFFF).to(tl.uint32)
    c3 = ((sample_id >> 32) & 0xFFFFFFFF).to(tl.uint32)
    return tl.philox_impl(call.to(tl.uint32), c1, c2, c3, k0, k1, 10)


@triton.jit
def in_order(lane0, lane1, lane2, lane3):
    """Four blocks of N lanes as one block of 4 N elements; 128-bit stores need no shuffle."""
    return tl.interleave(tl.interleave(lane0, lane2), tl.interleave(lane1, lane3))


@triton.jit
def uniform(word):
    """(word >> 8) * 2^-24: fp32 in [0, 1), exact."""
    return (word >> 8).to(tl.int32).to(tl.float32) * 5.9604644775390625e-08


@triton.jit
def sign(word):
    """+1.0 where bit 0 is clear, else -1.0; independent of `uniform`, which drops the low bits."""
    return tl.where((word & 1) == 0, 1.0, -1.0)


@triton.jit
def negative_log(v):
    """-log(v) for normal fp32 v in (0, 1], within 1e-7 of its size; Cephes' logf."""
    bits = v.to(tl.int32, bitcast=True) - 0x3F3504F3  # mantissas in [sqrt(1/2), sqrt(2))
    exponent = (bits >> 23).to(tl.float32)
    f = ((bits & 0x7FFFFF) + 0x3F3504F3).to(tl.float32, bitcast=True) - 1.0
    p = 7.0376836292e-2 * f - 1.1514610310e-1
    p = p * f + 1.1676998740e-1
    p = p * f - 1.2420140846e-1
    p = p * f + 1.4249322787e-1
    p = p * f - 1.6668057665e-1
    p = p * f + 2.0000714765e-1
    p = p * f - 2.4999993993e-1
    p = p * f + 3.3333331174e-1
    square = f * f
    y = p * f * square
    y = y - exponent * 2.12194440e-4
    y = y - 0.5 * square
    return 0.0 - ((f + y) + exponent * 0.693359375)  # +0.0 for v = 1


@triton.jit
def cos_sin_turn(word):
    """(cos, sin) of 2 pi uniform(word), within 6e-8: the angle is (quadrant + s) * pi / 2."""
    k = (word >> 8).to(tl.int32)
    quadrant = (k + 0x200000) >> 22
    s = (k - (quadrant << 22)).to(tl.float32) * 2.384185791015625e-07  # exact, in [-1/2, 1/2)
    z = s * s
    p = 0.07967590540647507 - 0.004592289216816425 * z
    p = p * z - 0.6459629535675049
    p = p * z + 0.07079630345106125
    sine = 1.5 * s + s * p  # 1.5 * s is exact: the rounding of pi / 2 * s would cost 1 ULP
    q = 0.0009040216682478786 * z - 0.02086028829216957
    q = q * z + 0.25366923213005066
    q = q * z - 1.2337005138397217
    cosine = 1.0 + z * q
    odd = (quadrant & 1) != 0
    across = tl.where(odd, sine, cosine)
    up = tl.where(odd, cosine, sine)
    across = tl.where(((quadrant + 1) & 2) != 0, -across, across)
    return across, tl.where((quadrant & 2) != 0, -up, up)


@triton.jit
def exponential(word):
    """-log(1 - uniform(word)): in [0, 16.7], never infinite."""
    return negative_log(1.0 - uniform(word))


@triton.jit
def normal_pair(word0, word1):
    """Two standard normals, Box and Muller: radius from word0, angle from word1; at most 5.77."""
    radius = tl.sqrt_rn(2.0 * exponential(word0))
    across, up = cos_sin_turn(word1)
    return radius * across, radius * up


@triton.jit
def uniforms(seed, sample_id, draw, call, PURPOSE: tl.constexpr):
    """Uniforms of elements 4 * call .. 4 * call + 3, in order."""
    w0, w1, w2, w3 = draw_words(seed, sample_id, draw, call, PURPOSE)
    return in_order(uniform(w0), uniform(w1), uniform(w2), uniform(w3))


@triton.jit
def normals(seed, sample_id, draw, call, PURPOSE: tl.constexpr):
    """Standard normals of elements 4 * call .. 4 * call + 3: lanes (0, 1) and (2, 3) are pairs."""
    w0, w1, w2, w3 = draw_words(seed, sample_id, draw, call, PURPOSE)
    n0, n1 = normal_pair(w0, w1)
    n2, n3 = normal_pair(w2, w3)
    return in_order(n0, n1, n2, n3)


@triton.jit
def exponentials(seed, sample_id, draw, call, PURPOSE: tl.constexpr):
    """Exponentials of elements 4 * call .. 4 * call + 3."""
    w0, w1, w2, w3 = draw_words(seed, sample_id, draw, call, PURPOSE)
    return in_order(exponential(w0), exponential(w1), exponential(w2), exponential(w3))


@triton.jit
def signed_exponentials(seed, sample_id, draw, call, PURPOSE: tl.constexpr):
    """Exponentials with the signs of their own words (Laplace variables)."""
    w0, w1, w2, w3 = draw_words(seed, sample_id, draw, call, PURPOSE)
    return in_order(
        sign(w0) * exponential(w0), sign(w1) * exponential(w1),
        sign(w2) * exponential(w2), sign(w3) * exponential(w3),
    )  # fmt: skip
