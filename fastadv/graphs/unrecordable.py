"""Operations that no graph can hold, refused before they reach the device.

CUDA refuses them too, but that ends the recording in an error after which allocator and generator
are left half in it; and its words do not say which line of the model is to blame.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten
_WAITS = {
    _aten._local_scalar_dense: ".item(), float(tensor) or a Python if on a tensor",
    _aten.is_nonzero: "a Python if on a tensor",
    _aten.equal: "torch.equal",
    _aten.nonzero: "nonzero, or torch.where with one argument",
    _aten.masked_select: "masked_select, or boolean indexing",
    _aten._unique: "unique",
    _aten._unique2: "unique",
    _aten.unique_dim: "unique",
    _aten.unique_consecutive: "unique_consecutive",
    _aten.unique_dim_consecutive: "unique_consecutive",
    _aten.bincount: "bincount",
}


class Unrecordable(RuntimeError):
    """An operation that needs the host in the middle of a step."""


class Guard(TorchDispatchMode):
    """Inside, an operation that a graph cannot hold raises `Unrecordable`."""

    @classmethod
    def is_infra_mode(cls) -> bool:
        return True  # what torch.compile made runs on, where any other mode would switch it off

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        check_recordable(func, args, kwargs)
        return func(*args, **kwargs)


def check_recordable(func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> None:
    """Raises `Unrecordable` for what waits for the device, or has a shape that values decide."""
    packet: Any = getattr(func, "overloadpacket", func)
    if packet in _WAITS:
        raise _refusal(_WAITS[packet], func)
    if packet in (_aten.index, _aten.index_put, _aten.index_put_, _aten._index_put_impl_):
        # one value for all places is a masked_fill, which holds no shape
        is_fill = packet is not _aten.index and args[2].numel() == 1
        if not is_fill and any(i is not None and i.dtype in _MASKS for i in args[1]):
            raise _refusal("boolean indexing", func)
    elif packet is _aten.repeat_interleave:
        if kwargs.get("output_size") is None:
            raise _refusal("repeat_interleave without output_size", func)
    elif packet in (_aten._to_copy, _aten.copy_) and not _is_asynchronous(args, kwargs):
        source, target = _ends_of_copy(packet, args, kwargs)
        if source != target and "cpu" in (source, target):
            raise _refusal(f"a copy from {source} to {target} (.cpu(), .to(), torch.tensor)", func)


_MASKS = (torch.bool, torch.uint8)


def _refusal(what: str, func: Callable[..., Any]) -> Unrecordable:
    return Unrecordable(f"the step uses {what}, which waits for the device ({func})")


def _is_asynchronous(args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    return bool(args[2] if len(args) > 2 else kwargs.get("non_blocking", False))


def _ends_of_copy(packet: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[str, str]:
    if packet is _aten.copy_:
        return args[1].device.type, args[0].device.type
    device = kwargs.get("device")
    source = args[0].device.type
    return source, source if device is None else torch.device(device).type


def tensors_in(*values: Any) -> list[torch.Tensor]:
    """The tensors in nested lists, tuples and dicts."""
    return [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, torch.Tensor)]
