"""A device without float64, as Apple's MPS, on a CPU.

Tensors count as tensors of that device: an op that makes or takes a float64 tensor there raises.
What `fastadv.ops.doubles` or `.cpu()` fetches to the host, what is made without naming a device,
and all that is computed from these, counts as the host's until it is moved to a device; an op that
takes float64 of the host and tensors of the device raises, as torch does.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from fastadv.ops import backend, doubles, registry

_WIDE = (torch.float64, torch.complex128)
_aten = torch.ops.aten
# of torch.tensor and from_numpy, and the number in a torch.where
_HOST = (_aten.lift_fresh.default, _aten.scalar_tensor.default)
_FACTORIES = {torch.empty, torch.zeros, torch.ones, torch.full, torch.tensor, torch.arange}


class NoFloat64(TorchDispatchMode):
    """fetched: how many tensors went to the host. at_home: what is made now lies there."""

    def __init__(self) -> None:
        super().__init__()
        self._host: dict[int, StorageWeakRef] = {}  # which also keep an address from being reused
        self.fetched = 0
        self.at_home = False

    @classmethod
    def is_infra_mode(cls) -> bool:
        return True  # what torch.compile made runs on

    def on_host(self, tensor: torch.Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._host

    def marked(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        self._host[storage._cdata] = StorageWeakRef(storage)
        return tensor

    def fetch(self, tensor: torch.Tensor) -> torch.Tensor:
        self.fetched += 1
        with _disable_current_modes():
            return self.marked(tensor.to(torch.float64, copy=True))

    def send(self, tensor: torch.Tensor) -> torch.Tensor:
        dtype = torch.float32 if tensor.dtype == torch.float64 else tensor.dtype
        with _disable_current_modes():
            return tensor.to(dtype, copy=True)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "fastadv":  # inside of an op no mode is on
            name = func._schema.name.removeprefix("fastadv::")
            with self, _Places(self):
                return registry.implementations()[name].reference(*args)
        given = _tensors((args, kwargs))
        rows = [t for t in given if t.ndim > 0]
        is_host = bool(given) and all(map(self.on_host, rows or given))
        if self.at_home or func in _HOST:
            is_host = True
        if not is_host:
            self._check(func, given)
        if not is_host and any(t.dtype in _WIDE for t in rows):
            raise RuntimeError(f"{func}: expected all tensors to be on the same device")
        out = func(*args, **kwargs)
        if is_host:
            for tensor in _tensors(out):
                self.marked(tensor)
        else:
            self._check(func, _tensors(out))
        return out

    def _check(self, func: Any, tensors: list[torch.Tensor]) -> None:
        if any(t.dtype in _WIDE and not self.on_host(t) for t in tensors):
            raise TypeError(f"{func}: the device has no float64")


class _Places(TorchFunctionMode):
    """Where a call says that its result lies: `.cpu()`, `.to(device)`, factories with no device."""

    def __init__(self, mode: NoFloat64) -> None:
        super().__init__()
        self.mode = mode

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.mode.at_home = func in _FACTORIES and kwargs.get("device") is None
        try:
            out = func(*args, **kwargs)
        finally:
            self.mode.at_home = False
        if func is torch.Tensor.cpu:
            return self.mode.marked(_copy(out))
        moves = any(isinstance(value, torch.device) for value in (*args[1:], *kwargs.values()))
        if moves and isinstance(out, torch.Tensor) and self.mode.on_host(out):
            self.mode._check(func, [_copy(out)])
            return _copy(out)
        return out


def _tensors(values: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    with _disable_current_modes():
        return tensor.detach().clone()


@contextmanager
def without_float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[NoFloat64]:
    """Inside, the CPU is such a device; ops run their references, as on any device of its own."""
    mode = NoFloat64()

    def has_float64(where: torch.Tensor | torch.device) -> bool:
        return isinstance(where, torch.Tensor) and mode.on_host(where)

    with monkeypatch.context() as patch, backend.use_backend("reference"):
        patch.setattr(doubles, "has_float64", has_float64)
        patch.setattr(doubles, "_fetched", mode.fetch)
        patch.setattr(doubles, "_sent", lambda value, like: mode.send(value))
        with mode, _Places(mode):
            yield mode
