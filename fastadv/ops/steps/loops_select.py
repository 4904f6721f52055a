"""Row select as a compiled loop."""

from typing import Any

import numpy as np

from fastadv.ops.loops import Address, Count, Real, loop, pointer


@loop
def _select(
    destination_at: Address,
    source_at: Address,
    flags_at: Address,
    stride: Count,
    rows: Count,
    size: Count,
    zero: Real,
) -> None:
    destination, source = pointer(destination_at, zero), pointer(source_at, zero)
    flags = pointer(flags_at, np.int32)
    for row in range(rows):
        if flags[row * stride] != 0:
            for j in range(row * size, (row + 1) * size):
                destination[j] = source[j]


def select_rows_(destination: Any, source: Any, flags: Any) -> None:
    """The op's arguments by position."""
    rows = destination.shape[0]
    _select[destination.dtype](
        destination.data_ptr(),
        source.data_ptr(),
        flags.data_ptr(),
        flags.stride(0),
        rows,
        destination.numel() // max(rows, 1),
        0.0,
    )
