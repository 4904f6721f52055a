"""What a step of an attack calls, counted."""

from collections import Counter
from collections.abc import Callable

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

DATA_DEPENDENT = {
    f"aten::{name}"
    for name in (
        "_local_scalar_dense",
        "item",
        "nonzero",
        "masked_select",
        "is_nonzero",
        "equal",
        "_unique",
        "_unique2",
        "unique_consecutive",
        "bincount",
        "repeat_interleave",
    )
}


class _OuterOps(TorchDispatchMode):
    """Names of the ops of the outermost floor: what an op does inside is not seen."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name().split(".")[0])
        return func(*args, **(kwargs or {}))


def outer_ops(call: Callable[[], object]) -> Counter[str]:
    with _OuterOps() as ops:
        call()
    return Counter(ops.names)


def all_ops(call: Callable[[], object]) -> Counter[str]:
    """Every op of every floor, those inside ops and inside C++ too.

    Read as they were recorded: `profiler.events()` takes ten times as long to order them.
    """
    with torch.autograd.profiler.profile() as profiler:
        call()
    names = (event.name() for event in profiler.kineto_results.events())
    return Counter(name for name in names if "::" in name)


def per_step(
    count: Callable[[Callable[[], object]], Counter[str]],
    call_of: Callable[[int], Callable[[], object]],
) -> dict[str, float]:
    """What two steps more add, by name, halved: the step itself, without start and end."""
    more, fewer = count(call_of(5)), count(call_of(3))
    names = more.keys() | fewer.keys()
    return {n: (more[n] - fewer[n]) / 2 for n in names if more[n] != fewer[n]}


def linear() -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(48, 5)
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    return nn.Sequential(nn.Flatten(), layer)
