"""Philox4x32-10 in eager torch, and what its words are made into, whoever makes them.

They are the bits of `fastadv.kernels.noise.philox`, word for word: uint32 values in int64 tensors,
whose products wrap as uint64 does.

Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from fastadv.kernels.noise import streams
from fastadv.ops import rounding

_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF

# Every constant is the decimal of an fp32 number or rounds to one as in kernels/noise/philox.py.
# Cephes' logf; sine and cosine fitted to a relative 1e-9 on a quarter turn around 0.
_LOG = (
    7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
    -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
)  # fmt: skip
_SINE = (-0.004592289216816425, 0.07967590540647507, -0.6459629535675049, 0.07079630345106125)
_COSINE = (0.0009040216682478786, -0.02086028829216957, 0.25366923213005066, -1.2337005138397217)
_SQRT_HALF_BITS = 0x3F3504F3


def philox4x32(
    c0: torch.Tensor, c1: torch.Tensor, c2: torch.Tensor, c3: torch.Tensor, seed: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Four words for each counter (c0, c1, c2, c3), int64 tensors that broadcast; key = seed."""
    key = [seed & _WORD, (seed >> 32) & _WORD]
    for _ in range(_ROUNDS):
        low0, low1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        # a product's low word stays unmasked until it is multiplied or returned: 10 ops a round
        c0, c2 = ((low1 >> 32) ^ c1 ^ key[0]) & _WORD, ((low0 >> 32) ^ c3 ^ key[1]) & _WORD
        c1, c3 = low1, low0
        key = [(k + weyl) & _WORD for k, weyl in zip(key, _WEYL, strict=True)]
    return c0, c1 & _WORD, c2, c3 & _WORD


def stream_of(sample_ids: torch.Tensor, purpose: int, draw: int | torch.Tensor) -> torch.Tensor:
    """(B,) int64: the second word of the counter."""
    if isinstance(draw, torch.Tensor):
        stream = draw.to(torch.int64)
    else:
        stream = torch.full_like(sample_ids, draw, dtype=torch.int64)
    return (stream & ((1 << streams.DRAW_BITS) - 1)) | (purpose << streams.DRAW_BITS)


@dataclass(frozen=True)
class Draws:
    """Philox's words and the numbers made of them; the fields say who makes the words.

    Each takes (seed, sample_ids, purpose, draw, count), as `fastadv.ops.noise.philox.words`. lanes:
    four tensors (B, ceil(count / 4)), int64. words, uniforms: (B, count), int64 and float32.
    """

    lanes: Callable[..., tuple[torch.Tensor, ...]]
    words: Callable[..., torch.Tensor]
    uniforms: Callable[..., torch.Tensor]

    def signs(self, seed, sample_ids, purpose, draw, count) -> torch.Tensor:
        return _sign(self.words(seed, sample_ids, purpose, draw, count))

    def exponentials(self, seed, sample_ids, purpose, draw, count) -> torch.Tensor:
        return _exponential(self.words(seed, sample_ids, purpose, draw, count))

    def signed_exponentials(self, seed, sample_ids, purpose, draw, count) -> torch.Tensor:
        drawn = self.words(seed, sample_ids, purpose, draw, count)
        return _sign(drawn) * _exponential(drawn)

    def normals(self, seed, sample_ids, purpose, draw, count) -> torch.Tensor:
        w0, w1, w2, w3 = self.lanes(seed, sample_ids, purpose, draw, count)
        return _in_order((*_normal_pair(w0, w1), *_normal_pair(w2, w3)), count)


def _lanes(
    seed: int, sample_ids: torch.Tensor, purpose: int, draw: int | torch.Tensor, count: int
) -> tuple[torch.Tensor, ...]:
    ids = sample_ids.to(torch.int64)
    stream = stream_of(ids, purpose, draw)[:, None]
    call = torch.arange((count + 3) // 4, device=ids.device)[None]
    low, high = (ids & _WORD)[:, None], ((ids >> 32) & _WORD)[:, None]
    return philox4x32(call, stream, low, high, seed)


def _in_order(lanes: tuple[torch.Tensor, ...], count: int) -> torch.Tensor:
    return torch.stack(lanes, dim=-1).flatten(1)[:, :count]


def _words(
    seed: int, sample_ids: torch.Tensor, purpose: int, draw: int | torch.Tensor, count: int
) -> torch.Tensor:
    return _in_order(_lanes(seed, sample_ids, purpose, draw, count), count)


def _uniforms(
    seed: int, sample_ids: torch.Tensor, purpose: int, draw: int | torch.Tensor, count: int
) -> torch.Tensor:
    return _uniform(_words(seed, sample_ids, purpose, draw, count))


EAGER = Draws(_lanes, _words, _uniforms)


def _uniform(word: torch.Tensor) -> torch.Tensor:
    return (word >> 8).float() * 2.0**-24


def _sign(word: torch.Tensor) -> torch.Tensor:
    return 1.0 - 2.0 * (word & 1).float()


def _horner(coefficients: tuple[float, ...], t: torch.Tensor) -> torch.Tensor:
    value = coefficients[0] * t + coefficients[1]
    for coefficient in coefficients[2:]:
        value = value * t + coefficient
    return value


def _negative_log(v: torch.Tensor) -> torch.Tensor:
    bits = v.view(torch.int32) - _SQRT_HALF_BITS
    exponent = (bits >> 23).float()
    f = ((bits & 0x7FFFFF) + _SQRT_HALF_BITS).view(torch.float32) - 1.0
    square = f * f
    y = _horner(_LOG, f) * f * square
    y = y - exponent * 2.12194440e-4
    y = y - 0.5 * square
    return 0.0 - ((f + y) + exponent * 0.693359375)  # +0.0 for v = 1


def _cos_sin_turn(word: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    k = word >> 8
    quadrant = (k + (1 << 21)) >> 22
    s = (k - (quadrant << 22)).float() * 2.0**-22
    z = s * s
    sine = 1.5 * s + s * _horner(_SINE, z)
    cosine = 1.0 + z * _horner(_COSINE, z)
    odd = (quadrant & 1) != 0
    across, up = torch.where(odd, sine, cosine), torch.where(odd, cosine, sine)
    across = torch.where(((quadrant + 1) & 2) != 0, -across, across)
    return across, torch.where((quadrant & 2) != 0, -up, up)


def _exponential(word: torch.Tensor) -> torch.Tensor:
    return _negative_log(1.0 - _uniform(word))


def _normal_pair(word0: torch.Tensor, word1: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    radius = rounding.root(2.0 * _exponential(word0))
    across, up = _cos_sin_turn(word1)
    return radius * across, radius * up
