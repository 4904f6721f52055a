"""Division by a host number and square root, rounded once whatever the device and its aten."""

import torch

from fastadv.ops import doubles


def divided(value: torch.Tensor, number: float) -> torch.Tensor:
    """value / number, correctly rounded.

    CUDA's aten multiplies by the rounded reciprocal of a host number, or of a 0-d tensor of the
    CPU: another result for a third of all values at 1.5. `new_full` is a fill on the device, which
    a graph can record; `torch.tensor` would be a copy that waits.
    """
    return value / value.new_full((), number)


def root(square: torch.Tensor) -> torch.Tensor:
    """The square root, correctly rounded (on devices with float64): torch's own in fp32 is not, on
    CPUs."""
    return square.to(doubles.widest(square)).sqrt().to(square.dtype)
