"""Loops over rows of CPU tensors, written in a subset of Python that numba compiles.

A loop takes addresses (`tensor.data_ptr()`, 0 for None), counts and scalars, as its annotations
say, and gives nothing back: a call costs two microseconds. It is compiled for one dtype at its
first use there, or loaded from the disk. One thread, without the GIL, no fast-math: what becomes of
a row depends on that row alone. numba takes a second to import and to set up, so that it is
imported by `loop_compiler`, where something is to be compiled; llvmlite loads the machine code.

Loops may call functions marked as `inner`, `pointer` and what numba knows of `math`; constants of
modules are frozen into them. They must raise nothing.
"""

from collections.abc import Callable
from typing import Annotated, Any

import torch

from fastadv.ops import machine_code

Address = Annotated[int, "address"]  # of the first element; 0: there is no such tensor
Count = Annotated[int, "count"]  # flags too
Double = Annotated[float, "double"]
Real = Annotated[float, "real"]  # of the dtype of the rows
_REALS = {torch.float32: "float32", torch.float64: "float64"}
_TYPES = {"address": "int64", "count": "int64", "double": "float64"}
INNER: list[Callable[..., Any]] = []


def inner(function: Callable[..., Any]) -> Any:
    """Of a function that loops call, which is inlined into them."""
    INNER.append(function)
    return function


def pointer(address: int, like: Any) -> Any:
    """The elements at `address`, indexed from 0 without checks: of the type of `like`, which is a
    scalar or a numpy type (np.int32). In loops only."""
    raise NotImplementedError("only compiled loops have pointers")


class Loop(dict[torch.dtype, Callable[..., Any]]):
    """`loop[dtype](*arguments)` runs it on rows of float32 or float64."""

    def __init__(self, function: Callable[..., None], name: str = "") -> None:
        """name: on the disk, of a function that is one of several of its name."""
        super().__init__()
        self.function = function
        self.name = name or f"{function.__module__}.{function.__name__}"
        kinds = (one for name, one in function.__annotations__.items() if name != "return")
        self._kinds = [kind.__metadata__[0] for kind in kinds]

    def __missing__(self, dtype: torch.dtype) -> Callable[..., Any]:
        types = tuple(_TYPES.get(kind, _REALS[dtype]) for kind in self._kinds)
        self[dtype] = run = machine_code.loaded(self.name, self.function, types)
        return run


def loop(function: Callable[..., None]) -> Loop:
    """Of a function whose parameters are annotated as Address, Count, Double or Real."""
    return Loop(function)


def address(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


@inner
def larger(a, b):
    """torch.maximum: a NaN of either, and b of two zeros."""
    return a if (a > b) | (a != a) else b


@inner
def smaller(a, b):
    """torch.minimum, as `larger`."""
    return a if (a < b) | (a != a) else b


@inner
def clamped(value, lo, hi):
    """torch.clamp with numbers: a NaN stays one."""
    value = lo if lo > value else value
    return hi if hi < value else value
