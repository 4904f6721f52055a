"""The least loop, which says whether any can be compiled and run."""

import torch

from fastadv.ops.loops import Address, Count, Real, loop, pointer


@loop
def add(values_at: Address, count: Count, number: Real) -> None:
    values = pointer(values_at, number)
    for i in range(count):
        values[i] += number


def runs() -> bool:
    values = torch.zeros(3)
    add[values.dtype](values.data_ptr(), 2, 1.5)
    return values.tolist() == [1.5, 1.5, 0.0]
