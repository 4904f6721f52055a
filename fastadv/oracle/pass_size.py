"""How many rows a pass takes on a CPU where the caller does not say: by the bytes that it moves.

A pass over many rows leaves the caches, and its activations are blocks that glibc maps and unmaps
anew each time: at 2 us a page of 4 KiB that was up to half of a pass. Over few rows it is mostly
overhead. The rule is a function of the model and of shapes, never of a clock, so that the same call
takes the same passes everywhere.
"""

import contextlib
import functools
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastadv.isolation import Model
from fastadv.reach import every_module

_FAST = 3 * 2**20  # bytes of the largest activation of a pass
_FEW, _ROOMY = 32, 16 * 2**20  # rows below which a pass is slow a row, and bytes that are worth it
_LEAST = 8  # rows: the weights are read once a pass
_WIDENS = 2  # times its input a network is taken to make of a row, before anything is known
_AT_MOST = 48  # times: what is small even so need not be looked at


def fast_rows(row_bytes: float) -> int:
    """Rows of a pass whose largest activation has `row_bytes` a row: of as many as make 3 MiB,
    and of 32 while they make 16 MiB, the more; at least 8.

    Example: `fast_rows(50_176)`, 56 rows of 16 maps of 28 x 28.
    """
    rows = max(_FAST // row_bytes, min(_FEW, _ROOMY // row_bytes), _LEAST)
    return int(rows) // _LEAST * _LEAST


def first_rows(x: torch.Tensor) -> int:
    """Rows of the first pass over samples like those of x, (n, ...)."""
    return fast_rows(_WIDENS * _row_bytes(x))


def may_split(model: Model, x: torch.Tensor) -> bool:
    """Whether passes over fewer rows than all of x could be faster: on a CPU, unless all of it is
    small; nor of what torch.compile has made, which compiles again for other shapes."""
    is_small = len(x) <= _LEAST or _AT_MOST * _row_bytes(x) * len(x) <= _FAST
    if x.device.type != "cpu" or is_small:
        return False
    if hasattr(model, "_torchdynamo_orig_callable"):
        return False
    return not any(map(_is_compiled, every_module(model)))


def _row_bytes(x: torch.Tensor) -> int:
    return max(1, x[:1].numel() * x.element_size())


def _is_compiled(module: nn.Module) -> bool:
    return "_orig_mod" in module._modules or module._compiled_call_impl is not None


def looked_at(
    model: Model, x: torch.Tensor, extra: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, int]:
    """(model(x, *extra), the rows of a fast pass)."""
    with contextlib.ExitStack() as stack:
        if "torch._dynamo" in sys.modules:
            # else it would never compile what the model calls compiled, once seen in this mode
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        largest = stack.enter_context(_Largest(x))
        output = model(x, *extra)
    return output, fast_rows(largest.row_bytes)


@functools.cache  # torch makes the schema's parts anew each time
def _is_view(operator: Any) -> bool:
    return any(returned.alias_info for returned in operator._schema.returns)


class _Largest(TorchDispatchMode):
    """Sees the largest tensor that an operator makes of a batch like x, in bytes a row."""

    def __init__(self, x: torch.Tensor) -> None:
        super().__init__()
        self._rows = max(1, len(x))
        self.row_bytes: float = _row_bytes(x)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else the first look imports torch._dynamo, which takes a second

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if _is_view(func):  # of weights perhaps
            return made
        for one in made if isinstance(made, tuple | list) else (made,):
            if isinstance(one, torch.Tensor) and self._is_of_rows(one):
                own = one.numel() * one.element_size() / self._rows
                self.row_bytes = max(self.row_bytes, own)
        return made

    def _is_of_rows(self, tensor: torch.Tensor) -> bool:
        """Not what is made of weights: rows come first, in parts or with others, or second."""
        shape = tensor.shape
        if tensor.layout != torch.strided or not shape:
            return False
        return shape[0] % self._rows == 0 or self._rows in shape[1:3]
