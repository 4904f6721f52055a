"""The smallest and the largest of a tensor, read to the host in the cheapest way."""

import torch

from fastadv.ops import registry


def extremes(values: torch.Tensor) -> tuple[float, float]:
    """(smallest, largest) of a tensor that is not empty, both NaN if it has one; synchronises once.

    >>> extremes(torch.tensor([3.0, -1.0, 2.0]))
    (-1.0, 3.0)
    """
    values = values.detach()
    if registry.takes_cpu_path(values) and not values.is_neg():
        array = values.numpy()  # whose minimum and maximum take half of aminmax's time
        return float(array.min()), float(array.max())
    low, high = torch.stack(torch.aminmax(values)).tolist()
    return low, high
