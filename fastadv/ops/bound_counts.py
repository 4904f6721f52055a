"""Counts of entries at the bounds and of those that have a gradient: one pass on a CPU."""

from typing import Any, NamedTuple

import numpy as np
import torch

from fastadv.ops import backend, bound_counts_loop, layout, registry

Bounds = tuple[float, float]


class Counts(NamedTuple):
    """Of each sample of a batch, int64; arrays of numpy where loops have counted, on the host.

    there, kept: (2, B), entries at the lower and at the upper bound, and those of them whose
    gradient is not 0. moving, undefined: (B,), entries whose gradient is not 0, and is NaN.
    """

    there: Any
    kept: Any
    moving: Any
    undefined: Any

    @property
    def is_on_host(self) -> bool:
        return isinstance(self.moving, np.ndarray)


def counted(
    grad: torch.Tensor, x: torch.Tensor, bounds: Bounds, *, within: float, loops: bool = True
) -> Counts:
    """Counts at x, (B, ...), of its gradient; an entry within `within` of a bound lies there.

    No synchronisation. loops: whether compiled loops may count, which no recording sees. Example:
    `counted(grad, x, (0.0, 1.0), within=1e-6).there.sum(1)`.
    """
    if loops and _are_looped(grad, x):
        counts = bound_counts_loop.counted(grad, x, bounds, within).numpy()
        return Counts(counts[:2], counts[2:4], counts[4], counts[5])
    has_gradient = (grad != 0).reshape(len(x), -1)
    there = torch.stack(at_bounds(x, bounds, within)).reshape(2, len(x), -1)
    undefined = grad.isnan().reshape(len(x), -1)
    found = there, there & has_gradient, has_gradient, undefined
    return Counts(*(entries.sum(-1) for entries in found))


def at_bounds(x: torch.Tensor, bounds: Bounds, within: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Which entries lie at the lower and at the upper bound."""
    low, high = bounds
    return (x >= low) & (x <= low + within), (x <= high) & (x >= high - within)


def _are_looped(grad: torch.Tensor, x: torch.Tensor) -> bool:
    dense = layout.dense_format(x)
    return (
        registry.takes_cpu_path(grad)
        and registry.takes_cpu_path(x)
        and grad.dtype == x.dtype
        and dense is not None
        and layout.is_dense_as(grad, dense)
        and not grad.is_neg()
        and backend.runs_compiled()
    )
