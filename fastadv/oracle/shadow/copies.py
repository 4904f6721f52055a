"""Shadow copies of a module: tensors of their own, detached, that follow those of the user."""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import MethodType

import torch
from torch import nn

from fastadv import memory
from fastadv.graphs.parallel import WRAPPERS
from fastadv.isolation import Model, module_of
from fastadv.oracle.shadow.watching import watch
from fastadv.reach import modules_behind

_CONTAINERS = ("_parameters", "_buffers", "_modules")


class Uncopyable(Exception):
    """Why there is no shadow copy of a model, in words."""


class Pair:
    """A tensor of a copy, `ours`, and the user's that it follows.

    They share their memory until `ours` is cast or laid out anew.
    """

    def __init__(self, own: torch.Tensor) -> None:
        self.own = own
        self.ours: torch.Tensor = _detached(own)
        self._shared = own.data_ptr()

    @property
    def is_copied(self) -> bool:
        return self.ours.data_ptr() != self._shared

    def share(self) -> None:
        """Follow memory that was exchanged, as `p.data = ...` does, and leave the old as it is."""
        if self.own.data_ptr() != self._shared:
            self.ours.data = self.own.detach()
            self._shared = self.own.data_ptr()


@dataclass(frozen=True)
class Replica:
    """A copy of a module none of whose tensors requires a gradient.

    rewrites: what computes the tensors of the copy that follow from several of the user's.
    """

    model: Model
    module: nn.Module
    pairs: tuple[Pair, ...]
    rewrites: list[Callable[[], None]] = field(default_factory=list)

    @torch.no_grad()
    def refresh(self) -> None:
        """Write what the user's tensors hold now into those of the copy, in place."""
        copied = [pair for pair in self.pairs if pair.is_copied]
        for pair in self.pairs:
            if not pair.is_copied:
                pair.share()
        if copied:
            ours, own = [pair.ours for pair in copied], [pair.own for pair in copied]
            torch._foreach_copy_(ours, own)  # type: ignore[attr-defined]
        for rewrite in self.rewrites:
            rewrite()


def replica(model: Model, x: torch.Tensor, extra: Sequence[torch.Tensor] = ()) -> Replica:
    """A shadow copy of `model`, which is called once; Uncopyable says why there is none.

    A compiled module, DataParallel and DistributedDataParallel are replaced by what they wrap.
    """
    owner = module_of(model)
    if owner is None:
        raise Uncopyable(f"it is a {type(model).__name__}, not an nn.Module")
    if any(_is_scripted(module) for module in owner.modules()):
        raise Uncopyable("it was scripted or traced, so that torch copies its weights too")
    memo: dict[int, object] = {}
    pairs: list[Pair] = []
    try:
        for tensor in _tensors(owner):
            if id(tensor) not in memo:
                pairs.append(Pair(tensor))
                memo[id(tensor)] = pairs[-1].ours
        for module in reversed(list(owner.modules())):  # the innermost wrapper first
            if (inner := _unwrapped(module)) is not module:
                memo[id(module)] = copy.deepcopy(inner, memo)
        module = copy.deepcopy(owner, memo)
    except Uncopyable:
        raise
    except Exception as error:
        if memory.is_out_of_memory(error):
            raise
        raise Uncopyable(f"copying it failed with {type(error).__name__}: {error}") from error
    if any(id(module) in memo for module in modules_behind(owner)[1:]):
        raise Uncopyable("it holds a module in a list or an object, not as a submodule")
    known = {id(pair.ours) for pair in pairs}
    if any(id(p) not in known for p in module.parameters()):
        raise Uncopyable("its __deepcopy__ makes parameters anew")
    copied: Model = module
    if isinstance(model, MethodType):
        copied = MethodType(model.__func__, module)
    _require_own_tensors(copied, x, extra, pairs)
    return Replica(copied, module, tuple(pairs))


def _is_scripted(module: nn.Module) -> bool:
    """With weights: a frozen one has none, and is copied as it is."""
    is_script = isinstance(module, torch.jit.ScriptModule)
    return is_script and any(True for _ in module.parameters(recurse=False))


def _unwrapped(module: nn.Module) -> nn.Module:
    while True:
        if "_orig_mod" in module._modules:  # torch.compile's; importing its class costs seconds
            module = module.get_submodule("_orig_mod")
        elif isinstance(module, WRAPPERS):
            module = module.module
        else:
            return module


def _detached(tensor: torch.Tensor) -> torch.Tensor:
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(tensor.detach(), requires_grad=False)
    return tensor.detach()


def _tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    """Parameters, buffers, and what attributes, lists, tuples and dicts hold."""
    yield from module.parameters()
    yield from module.buffers()
    registered = set(module.modules())
    for part in module.modules():
        for name, value in vars(part).items():
            if name not in _CONTAINERS:
                yield from _held(value, registered)


def _held(value: object, registered: set[nn.Module], depth: int = 3) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, nn.Module) and value not in registered:
        raise Uncopyable("it holds a module in a list or an object, not as a submodule")
    elif depth and isinstance(value, list | tuple | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _held(item, registered, depth - 1)


def _require_own_tensors(
    model: Model, x: torch.Tensor, extra: Sequence[torch.Tensor], pairs: list[Pair]
) -> None:
    """A module that holds a function, as Normalized may, still calls what the function knows."""
    theirs = {id(pair.own) for pair in pairs}
    met = []

    def see(name: str, args: tuple, tensors: list[torch.Tensor], output: object) -> None:
        met.extend(name for tensor in tensors if id(tensor) in theirs)

    try:
        watch(model, x, see, extra)
    except Exception as error:
        if memory.is_out_of_memory(error):
            raise
        raise Uncopyable(f"a copy of it fails with {type(error).__name__}: {error}") from error
    if met:
        raise Uncopyable("it reaches its weights through a function, not as a submodule")
