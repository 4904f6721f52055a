"""Philox4x32-10 on CPUs: the words of `fastadv.ops.noise.reference` in numpy, in blocks, in place.

A round is four passes over two lanes of 64-bit words. numpy's integer loops take half the time of
eager torch's, and nothing is allocated within a block.
"""

import numpy as np
import torch

from fastadv.ops.noise.reference import Draws, stream_of

# counters: 16 bytes each in three arrays, what an L2 of 1 MB holds; 4,000 and 50,000 take twice the
# time for 128 samples of 3,072 elements (AMD EPYC, one thread)
_BLOCK = 20_000

# a round of lanes (c0, c2) leaves lanes (c2, c0): constants alternate, data stays where it is
_MULTIPLIERS = np.array([[[0xD2511F53], [0xCD9E8D57]], [[0xCD9E8D57], [0xD2511F53]]], np.uint64)
_WEYL = np.array([[[0xBB67AE85], [0x9E3779B9]], [[0x9E3779B9], [0xBB67AE85]]], np.uint64)
_BUMPS = np.arange(10, dtype=np.uint64).reshape(5, 2, 1, 1) * _WEYL  # of a key before each round
_WORD = np.array(0xFFFFFFFF, np.uint64)
_HALF = np.array(32, np.uint64)


def words(seed: int, ids: np.ndarray, stream: np.ndarray, calls: int) -> np.ndarray:
    """The four words of each counter (call, stream, id low, id high), key = seed, in order.

    seed: any integer, taken modulo 2^64. ids: (B,) int64. stream: (B,) uint32 values in int64.
    Returns (B, 4 * calls) uint32. Little-endian machines only: two words are made as one of 64
    bits.

    Example: `words(0, np.arange(2), np.zeros(2, np.int64), 1)[0, 0]`.
    Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
    """
    batch = len(ids)
    pairs = np.empty((batch, calls, 2), np.uint64)
    k0, k1 = seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF
    key = np.array([[[k1], [k0]], [[k0], [k1]]], np.uint64)
    keys = ((key + _BUMPS) & _WORD).reshape(10, 2, 1)
    rows, columns = ids.astype(np.uint64)[:, None], np.arange(calls, dtype=np.uint64)[None]
    low, high, stream = rows & _WORD, rows >> _HALF, stream.astype(np.uint64)[:, None]

    width = _even_share(calls, _BLOCK)
    height = _even_share(batch, max(1, _BLOCK // width))
    # two words in front of each: products are read one word late as well
    room = np.empty((3, 4 * height * width + 2), np.uint32)
    for top in range(0, batch, height):
        of = slice(top, top + height)
        for left in range(0, calls, width):
            there = slice(left, left + width)
            _fill(pairs[of, there], columns[:, there], stream[of], low[of], high[of], keys, room)
    return pairs.view(np.uint32).reshape(batch, 4 * calls)


def _even_share(length: int, limit: int) -> int:
    """The length of each of the fewest equal parts that are no longer than `limit`; at least 1."""
    parts = max(1, -(-length // limit))
    return max(1, -(-length // parts))


def _fill(
    pairs: np.ndarray,
    c0: np.ndarray,
    c1: np.ndarray,
    c2: np.ndarray,
    c3: np.ndarray,
    keys: np.ndarray,
    room: np.ndarray,
) -> None:
    """Words (0, 1) and (2, 3) of each counter as 64-bit words: (rows, calls, 2).

    c0: (1, calls), all others (rows, 1): the first two rounds are hardly more than their sums.
    """
    shape, size = pairs.shape[:2], pairs.shape[0] * pairs.shape[1]
    used = room[:, 2 : 2 + 4 * size]
    state, *products = used.view(np.uint64).reshape(3, 2, size)
    state_words, *product_words = used.reshape(3, 2, 2 * size)
    _, *late_words = room[:, 1 : 1 + 4 * size].reshape(3, 2, 2 * size)[:, ::-1]
    lanes, product_lanes = state.reshape(2, *shape), products[0].reshape(2, *shape)

    call_product, id_product = c0 * _MULTIPLIERS[0, 0], c2 * _MULTIPLIERS[0, 1]
    row = (id_product >> _HALF) ^ c1 ^ keys[0, 1]
    np.bitwise_xor((call_product >> _HALF) ^ keys[0, 0], c3, out=lanes[0])
    row_product = row * _MULTIPLIERS[1, 1]
    product_lanes[1] = row_product
    np.multiply(state[0], _MULTIPLIERS[1, 0], out=products[0][0])
    np.right_shift(products[0][0], _HALF, out=state[0])
    np.bitwise_xor(lanes[0], (id_product & _WORD) ^ keys[1, 0], out=lanes[0])
    np.bitwise_xor((row_product >> _HALF) ^ keys[1, 1], call_product & _WORD, out=lanes[1])

    for r in range(2, 10):
        new, old = (r + 1) % 2, r % 2
        np.multiply(state, _MULTIPLIERS[r % 2], out=products[new])
        # c = high word of one product ^ low word of the other one's predecessor ^ key: read one
        # word late, a low word stands over the high word, and what it leaves below is shifted out
        np.bitwise_xor(product_words[new], late_words[old], out=state_words)
        np.right_shift(state, _HALF, out=state)
        np.bitwise_xor(state, keys[r], out=state)
    np.left_shift(products[0], _HALF, out=products[0])
    for lane in range(2):
        np.bitwise_or(lanes[lane], product_lanes[lane], out=pairs[..., lane])


def _drawn(
    seed: int, sample_ids: torch.Tensor, purpose: int, draw: int | torch.Tensor, count: int
) -> np.ndarray:
    """(B, 4 * ceil(count / 4)) uint32."""
    ids = sample_ids.to(torch.int64)
    stream = stream_of(ids, purpose, draw)
    return words(seed, ids.numpy(), stream.numpy(), (count + 3) // 4)


def _lanes(seed, sample_ids, purpose, draw, count) -> tuple[torch.Tensor, ...]:
    drawn = _drawn(seed, sample_ids, purpose, draw, count).astype(np.int64)
    return torch.from_numpy(drawn).unflatten(1, (-1, 4)).unbind(2)


def _words(seed, sample_ids, purpose, draw, count) -> torch.Tensor:
    drawn = _drawn(seed, sample_ids, purpose, draw, count)
    return torch.from_numpy(drawn[:, :count].astype(np.int64))


def _uniforms(seed, sample_ids, purpose, draw, count) -> torch.Tensor:
    drawn = _drawn(seed, sample_ids, purpose, draw, count)
    upper = np.right_shift(drawn, 8, out=drawn)[:, :count].view(np.int32)
    return torch.from_numpy(upper).float().mul_(2.0**-24)


NUMPY = Draws(_lanes, _words, _uniforms)
