"""torch.compile of what is differentiated, once for all batch sizes."""

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator

import torch

from fastadv.isolation import Model

Backend = str | Callable[..., object]

# Compiled code is shared by all modules whose forward is the same function, and by all that have
# one of torch's own (nn.Sequential); past 8 variants of it, the default, all run uncompiled.
_LIMITS = {"recompile_limit": 1024, "accumulated_recompile_limit": 8192}


def compiled(function: Model, backend: Backend) -> Model:
    """`function`, compiled at its first call for all batches of two samples or more.

    A batch of one sample is compiled once more, and so is a pass without a graph for the backward
    pass. No tensor of `function` may require a gradient: eager autograd leaves the gradients of
    weights out where only that of x is asked for, a compiled backward pass computes them.
    """
    run: list[Model] = []
    seen: set[object] = set()

    def call(x: torch.Tensor, *extra: torch.Tensor) -> torch.Tensor:
        kind = torch.is_grad_enabled(), x.requires_grad, x.is_leaf, x.dtype, x.shape, x.stride()
        if kind in seen:
            return run[0](x, *extra)
        with _first_of_its_kind(x):
            run[:] = run or [torch.compile(function, backend=backend)]  # may fail, and warns too
            logits = run[0](x, *extra)
        seen.add(kind)
        return logits

    return call


@contextlib.contextmanager
def _first_of_its_kind(x: torch.Tensor) -> Iterator[None]:
    """Inside, x says that its first dimension varies, and no compiler complains of a setting."""
    before = {name: copy.copy(value) for name, value in vars(x).items() if "_dynamo" in name}
    # the soft form: a model that fixes its batch size is compiled for that size
    torch._dynamo.maybe_mark_dynamic(x, 0)
    try:
        with warnings.catch_warnings(), torch._dynamo.config.patch(_LIMITS):
            warnings.simplefilter("ignore")
            yield
    finally:
        for name in [name for name in vars(x) if "_dynamo" in name]:
            delattr(x, name)
        for name, value in before.items():
            setattr(x, name, value)
