"""The order of an epoch: a permutation that any device and process can draw again."""

import torch

from fastadv.kernels.noise import streams
from fastadv.ops.noise import philox


def epoch_order(
    samples: int, seed: int, epoch: int, device: torch.device, *, shuffle: bool = True
) -> torch.Tensor:
    """(N,) int64, the order of an epoch: sorts N Philox words, the same on every device.

    Word i is element i of sample id 0 under (seed, DATA_ORDER, epoch); equal words keep their
    order. shuffle=False: 0..N-1.

    Example: `epoch_order(60000, 0, 3, torch.device("cpu"))`.
    """
    if not shuffle:
        return torch.arange(samples, device=device)
    one_stream = torch.zeros(1, dtype=torch.int64, device=device)
    words = philox.words(seed, one_stream, streams.DATA_ORDER, epoch, samples)[0]
    return words.argsort(stable=True)


def check_epoch(epoch: int) -> None:
    """Raises ValueError for an epoch that Philox cannot draw."""
    if not 0 <= epoch < 1 << streams.DRAW_BITS:
        raise ValueError(f"epoch must lie in [0, 2^{streams.DRAW_BITS}); got {epoch}")
