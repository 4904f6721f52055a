"""The counts of `bound_counts` as a compiled loop."""

import numpy as np
import torch

from fastadv.ops.loops import Address, Count, Real, loop, pointer


@loop
def _count(
    grad_at: Address,
    x_at: Address,
    rows: Count,
    size: Count,
    low: Real,
    low_to: Real,
    high_from: Real,
    high: Real,
    counts_at: Address,
) -> None:
    grad, x, counts = pointer(grad_at, low), pointer(x_at, low), pointer(counts_at, np.int64)
    for row in range(rows):
        at_low = at_high = kept_low = kept_high = moving = undefined = np.int32(0)
        for j in range(row * size, row * size + size):
            moves = np.int32(grad[j] != 0)
            is_low = np.int32((x[j] >= low) & (x[j] <= low_to))
            is_high = np.int32((x[j] <= high) & (x[j] >= high_from))
            at_low += is_low
            at_high += is_high
            kept_low += is_low & moves
            kept_high += is_high & moves
            moving += moves
            undefined += np.int32(grad[j] != grad[j])
        counts[row], counts[rows + row] = at_low, at_high
        counts[2 * rows + row], counts[3 * rows + row] = kept_low, kept_high
        counts[4 * rows + row], counts[5 * rows + row] = moving, undefined


def counted(
    grad: torch.Tensor, x: torch.Tensor, bounds: tuple[float, float], within: float
) -> torch.Tensor:
    """(6, B) int64, in the order of `Counts`; grad and x are dense and alike."""
    rows = len(x)
    counts = torch.empty(6, rows, dtype=torch.int64)
    _count[x.dtype](
        grad.data_ptr(),
        x.data_ptr(),
        rows,
        x.numel() // max(rows, 1),
        bounds[0],
        bounds[0] + within,
        bounds[1] - within,
        bounds[1],
        counts.data_ptr(),
    )
    return counts
