"""Half precision: autocast, weights that are cast once, a last layer in float32."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from fastadv.oracle.shadow.copies import Replica
from fastadv.oracle.shadow.watching import ASKING, tensors_in, watch

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

# d loss / d logits of a confident sample is below the least number of fp16, 6e-8
SCALES = {"fp32": 1.0, "bf16": 1.0, "fp16": 1024.0}

# autocast runs these in half precision, and so casts their weights at each call
_PRODUCTS = {
    *("conv1d", "conv2d", "conv3d"),
    *("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
    *("linear", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm"),
    *("addmm", "baddbmm", "addbmm", "einsum", "multi_head_attention_forward"),
}


def autocast(kind: str, precision: str) -> torch.autocast:
    """Of device type `kind`; no cache: iterates change in place, and a cast would be kept."""
    dtype = DTYPES.get(precision)
    return torch.autocast(kind, dtype=dtype, enabled=dtype is not None, cache_enabled=False)


class _Uses:
    """Which tensors reach only functions that autocast runs in half precision."""

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        self.tracked = {_storage(t) for t in tensors if t.numel()}
        self.multiplied: set[int] = set()
        self.spoiled: set[int] = set()
        self.last: tuple[str, tuple] = ("", ())

    def see(self, name: str, args: tuple, tensors: list[torch.Tensor], output: object) -> None:
        if name in _PRODUCTS:
            self.last = name, args
        seen = {_storage(t) for t in tensors} & self.tracked
        if name in _PRODUCTS:
            self.multiplied |= seen
        elif seen and name not in ASKING:
            views = {_storage(t) for t in tensors_in(output)}
            self.spoiled |= seen if name.endswith("_") else seen - views

    def may_be_cast(self, tensor: torch.Tensor) -> bool:
        return _storage(tensor) in self.multiplied - self.spoiled


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class _Float32Linear(nn.Linear):
    """In float32 under autocast: bf16 logits of size 30 have steps of 0.125, a flat margin."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002, as nn.Linear names it
        with torch.autocast(input.device.type, enabled=False):
            return F.linear(input.float(), self.weight, self.bias)


def cast(
    replica: Replica, x: torch.Tensor, dtype: torch.dtype, extra: Sequence[torch.Tensor] = ()
) -> None:
    """Cast, once, the float32 weights of the copy that autocast would cast at each forward.

    If the last product of the forward at x is an nn.Linear, that layer stays in float32.
    """
    module = replica.module
    tensors = [t for t in (*module.parameters(), *module.buffers()) if t.dtype == torch.float32]
    uses = _Uses(tensors)
    watch(replica.model, x, uses.see, extra)
    kept = _last_linear(module, uses)
    if kept is not None:
        kept.__class__ = _Float32Linear
    whole = {id(t) for t in (() if kept is None else kept.parameters())}
    for tensor in tensors:
        if uses.may_be_cast(tensor) and id(tensor) not in whole:
            tensor.data = tensor.to(dtype)


def _last_linear(module: nn.Module, uses: _Uses) -> nn.Linear | None:
    name, args = uses.last
    if name != "linear" or len(args) < 2:
        return None
    owners = [m for m in module.modules() if type(m) is nn.Linear and m.weight is args[1]]
    return owners[0] if len(owners) == 1 and owners[0].weight.dtype == torch.float32 else None


def obstacle(precision: str, x: torch.Tensor) -> str:
    """Why autocast cannot run a model of samples like x in `precision`; "" if it can."""
    if precision == "fp32":
        return ""
    if x.dtype != torch.float32:
        return f"x is {x.dtype}, and autocast casts float32 only"
    if not torch.amp.is_autocast_available(x.device.type):
        return f"there is no autocast on {x.device.type}"
    return ""
