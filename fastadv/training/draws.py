"""The number of a batch, by which its noise is drawn: an integer, or where a graph replays it."""

from typing import Any, NamedTuple

import torch

from fastadv.kernels.noise import streams


class DeviceDraws(NamedTuple):
    """The number of batch `first` in `rows`, (B,) integers on the device: whoever fills them anew
    makes a recorded step draw anew."""

    rows: torch.Tensor
    first: int


def number(batch: int) -> int:
    """The number of a batch as the random streams take it."""
    return batch % (1 << streams.DRAW_BITS)


def draw_of(step: Any) -> int | torch.Tensor:
    """The number of the next batch of a step: an integer, or (B,) integers on the device."""
    held: DeviceDraws | None = step._draws
    if held is None:
        return number(step.batches)
    more = step.batches - held.first
    return held.rows + more if more else held.rows
