"""Random numbers by counter: a pure function of (seed, sample id, purpose, draw, element).

Purposes and the counter layout stand in `fastadv.kernels.noise.streams`. The words are those of
`fastadv.kernels.noise.philox`, from eager torch (`reference.py`) or, for plain tensors of the CPU,
faster from numpy (`cpu.py`). Nothing here reads or writes a generator.
"""

import torch

from fastadv.ops import registry
from fastadv.ops.noise import cpu, reference


def signed_seed(seed: int) -> int:
    """Any python integer modulo 2^64, as the int64 that ops and kernels take."""
    return ((seed + (1 << 63)) & ((1 << 64) - 1)) - (1 << 63)


def _draws(sample_ids: torch.Tensor) -> reference.Draws:
    return registry.choose(sample_ids, reference=reference.EAGER, cpu=cpu.NUMPY)


def words(
    seed: int, sample_ids: torch.Tensor, purpose: int, draw: int | torch.Tensor, count: int
) -> torch.Tensor:
    """The first `count` words of each sample: (B, count) int64 in [0, 2^32).

    seed: any integer, taken modulo 2^64. sample_ids: (B,) integers. purpose: one of
    `fastadv.kernels.noise.streams`. draw: an integer or (B,), taken modulo 2^24.
    """
    return _draws(sample_ids).words(seed, sample_ids, purpose, draw, count)


def uniforms(
    seed: int, sample_ids: torch.Tensor, purpose: int, draw: int | torch.Tensor, count: int
) -> torch.Tensor:
    """(B, count) float32 in [0, 1): (word >> 8) * 2^-24, exact. Arguments as in `words`."""
    return _draws(sample_ids).uniforms(seed, sample_ids, purpose, draw, count)


def signs(
    seed: int, sample_ids: torch.Tensor, purpose: int, draw: int | torch.Tensor, count: int
) -> torch.Tensor:
    """(B, count) float32, +1 where bit 0 of the word is clear, else -1. Arguments as in `words`."""
    return _draws(sample_ids).signs(seed, sample_ids, purpose, draw, count)


def exponentials(
    seed: int, sample_ids: torch.Tensor, purpose: int, draw: int | torch.Tensor, count: int
) -> torch.Tensor:
    """(B, count) float32, -log(1 - uniform), in [0, 16.7]. Arguments as in `words`."""
    return _draws(sample_ids).exponentials(seed, sample_ids, purpose, draw, count)


def signed_exponentials(
    seed: int, sample_ids: torch.Tensor, purpose: int, draw: int | torch.Tensor, count: int
) -> torch.Tensor:
    """`exponentials` times the `signs` of the same words, which are independent of them."""
    return _draws(sample_ids).signed_exponentials(seed, sample_ids, purpose, draw, count)


def normals(
    seed: int, sample_ids: torch.Tensor, purpose: int, draw: int | torch.Tensor, count: int
) -> torch.Tensor:
    """(B, count) float32 standard normals, Box and Muller on lanes (0, 1) and (2, 3); at most 5.77.

    Within 1e-6 of the exact transform. Arguments as in `words`.
    """
    return _draws(sample_ids).normals(seed, sample_ids, purpose, draw, count)


def random_integers(
    seed: int,
    sample_ids: torch.Tensor,
    purpose: int,
    draw: int | torch.Tensor,
    high: int | torch.Tensor,
) -> torch.Tensor:
    """(B,) int64, uniform in [0, high): (word of element 0 * high) >> 32.

    high: an integer or (B,) integers, in [1, 2^31]; a value's probability is off by at most
    2^-32. Raises ValueError for an integer outside that range; tensors are not checked (no
    synchronisation). Other arguments as in `words`.

    Example: `random_integers(0, torch.arange(8), streams.TARGET, 0, 10)`.
    """
    if not isinstance(high, torch.Tensor) and not 1 <= high <= 1 << 31:
        raise ValueError(f"high must lie in [1, 2^31]; got {high}")
    return (words(seed, sample_ids, purpose, draw, 1)[:, 0] * high) >> 32
