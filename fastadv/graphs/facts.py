"""What a recorded step has baked in about modules and optimizers: if it changes, record anew."""

import functools
from collections.abc import Hashable, Iterator, Mapping, Set
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import nn

from fastadv.reach import modules_behind

Fact = tuple[tuple[str, str], Hashable]  # ((path of a submodule, attribute), what it holds)

_DEPTH = 4  # of containers and objects in one another
_SMALL = 4096  # bytes of an array that are compared; of a larger one its identity is


def module_facts(module: nn.Module) -> tuple[Fact, ...]:
    """Types, hooks, all that attributes hold, and where tensors lie; no values of tensors, which a
    replay reads anew. Of the modules that it reaches otherwise too, see `fastadv.reach`."""
    seen: set[int] = set()
    facts = list(_facts(module, seen))
    for i, other in enumerate(modules_behind(module)[1:]):
        if id(other) not in seen:
            facts += (((f"{i}: {path}", name), fact) for (path, name), fact in _facts(other, seen))
    return tuple(facts)


def _facts(module: nn.Module, seen: set[int]) -> Iterator[Fact]:
    for path, part in module.named_modules():
        seen.add(id(part))
        yield (path, "type"), type(part)
        for name, value in vars(part).items():
            if name != "_modules":  # visited on their own
                yield (path, name), baked(value, seen, _DEPTH)


def optimizer_settings(
    optimizer: torch.optim.Optimizer, *, names: Set[str]
) -> tuple[Hashable, ...]:
    """The named settings of each group of parameters."""
    ordered = sorted(names)
    groups = optimizer.param_groups
    return tuple(tuple((n, baked(g[n])) for n in ordered if n in g) for g in groups)


def optimizer_places(optimizer: torch.optim.Optimizer) -> tuple[Hashable, ...]:
    """Where the parameters of each group, and their state, lie."""
    facts: list[Hashable] = []
    for group in optimizer.param_groups:
        for p in group["params"]:
            facts.append(tensor_facts(p))
            facts.extend(baked(value) for value in optimizer.state.get(p, {}).values())
        facts.append(None)
    return tuple(facts)


def tensor_facts(tensor: torch.Tensor | None) -> Hashable:
    """Where a tensor lies, and in which form."""
    if tensor is None:
        return None
    if not has_address(tensor):
        return id(tensor), tensor.layout, tensor.dtype, tensor.requires_grad
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.requires_grad


def has_address(tensor: torch.Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_nested


PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, np.generic)


def baked(value: Any, seen: set[int] | None = None, depth: int = _DEPTH) -> Hashable:
    """Plain values as they are, what they lie in recursively, anything else by its identity."""
    seen = set() if seen is None else seen
    if isinstance(value, torch.Tensor):
        return tensor_facts(value)
    if isinstance(value, PLAIN):
        return type(value), repr(value)  # 1 is not True, and NaN is NaN
    if isinstance(value, np.ndarray):
        return value.shape, value.tobytes() if value.nbytes <= _SMALL else id(value)
    if depth == 0 or id(value) in seen:
        return type(value), id(value)
    inside: list[Any]
    if isinstance(value, nn.Module):
        return tuple(_facts(value, seen))
    seen = seen | {id(value)}
    if isinstance(value, Mapping):
        inside = [*value.keys(), *value.values()]
    elif isinstance(value, list | tuple):
        inside = list(value)
    elif isinstance(value, set | frozenset):
        inside = sorted(value, key=repr)
    elif isinstance(value, functools.partial):
        inside = [value.func, *value.args, *value.keywords.items()]
    elif isinstance(value, MethodType):
        inside = [value.__func__, value.__self__]
    elif isinstance(value, FunctionType):
        cells = [_content(cell) for cell in value.__closure__ or ()]
        inside = [id(value.__code__), *cells, *(value.__defaults__ or ())]
    elif not isinstance(value, type) and hasattr(value, "__dict__"):
        inside = [id(value), *vars(value).items()]
    else:
        return type(value), id(value)
    return type(value), *(baked(one, seen, depth - 1) for one in inside)


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None
