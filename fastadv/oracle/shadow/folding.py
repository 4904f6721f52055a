"""BatchNorm layers in eval mode, folded into the layers before them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.utils import fusion

from fastadv.ops import doubles
from fastadv.oracle.shadow.copies import Replica
from fastadv.oracle.shadow.watching import ASKING, watch

_LAYERS = (
    nn.Linear,
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
_TRANSPOSED = _LAYERS[4:]
_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)


class _Skipped:
    """Put before a BatchNorm class: the forward pass of one that the layer before it does."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002, as nn.BatchNorm2d names it
        return input


class _SkippedBatchNorm1d(_Skipped, nn.BatchNorm1d):
    pass


class _SkippedBatchNorm2d(_Skipped, nn.BatchNorm2d):
    pass


class _SkippedBatchNorm3d(_Skipped, nn.BatchNorm3d):
    pass


class _SkippedSyncBatchNorm(_Skipped, nn.SyncBatchNorm):
    pass


_FOLDED = {
    nn.BatchNorm1d: _SkippedBatchNorm1d,
    nn.BatchNorm2d: _SkippedBatchNorm2d,
    nn.BatchNorm3d: _SkippedBatchNorm3d,
    nn.SyncBatchNorm: _SkippedSyncBatchNorm,
}


def fold(replica: Replica, x: torch.Tensor, extra: Sequence[torch.Tensor] = ()) -> int:
    """Fold each BatchNorm of the copy that alone gets a layer's output at x; returns how many.

    Unseen: a use inside a custom autograd function, or of a view. Compare the logits.
    """
    pairs = [pair for pair in _pairs(replica, x, extra) if _can_fold(*pair)]
    for layer, norm in pairs:
        folded = _Fold(layer, norm)
        replica.rewrites.append(folded.write)
    return len(pairs)


def has_hooks(module: nn.Module) -> bool:
    return any(getattr(module, hooks) for hooks in _HOOKS)


class _Calls:
    """How often each module was called, whose output each BatchNorm was given, and who else was."""

    def __init__(self) -> None:
        self.count: dict[nn.Module, int] = {}
        self.outputs: dict[int, tuple[nn.Module, torch.Tensor]] = {}
        self.uses: dict[int, int] = {}
        self.pairs: list[tuple[nn.Module, nn.Module, int]] = []

    def layer(self, module: nn.Module, args: tuple, output: torch.Tensor) -> None:
        self.count[module] = self.count.get(module, 0) + 1
        self.outputs[id(output)] = module, output  # kept: ids are used again

    def norm(self, module: nn.Module, args: tuple) -> None:
        self.count[module] = self.count.get(module, 0) + 1
        layer, output = self.outputs.get(id(args[0]) if args else 0, (None, None))
        if layer is None or output is None:
            return
        if output.ndim == 2 or not isinstance(layer, nn.Linear):  # else channels are not features
            self.pairs.append((layer, module, id(output)))

    def see(self, name: str, args: tuple, tensors: list[torch.Tensor], output: object) -> None:
        if name not in ASKING:
            for key in {id(t) for t in tensors} & self.outputs.keys():
                self.uses[key] = self.uses.get(key, 0) + 1

    def found(self) -> list[tuple[nn.Module, nn.Module]]:
        return [
            (layer, norm)
            for layer, norm, key in self.pairs
            if self.count[layer] == self.count[norm] == self.uses.get(key) == 1
        ]


def _pairs(
    replica: Replica, x: torch.Tensor, extra: Sequence[torch.Tensor]
) -> list[tuple[nn.Module, nn.Module]]:
    calls = _Calls()
    handles = []
    try:
        for module in replica.module.modules():
            if has_hooks(module):
                continue
            if type(module) in _LAYERS:  # a subclass may do something else with its weight
                handles.append(module.register_forward_hook(calls.layer))
            elif type(module) in _FOLDED:
                handles.append(module.register_forward_pre_hook(calls.norm))
        watch(replica.model, x, calls.see, extra)
    finally:
        for handle in handles:
            handle.remove()
    return calls.found()


def _can_fold(layer: nn.Module, norm: nn.Module) -> bool:
    has_statistics = getattr(norm, "running_mean", None) is not None
    # torch's fusion knows one group of a transposed convolution
    one_group = not isinstance(layer, _TRANSPOSED) or getattr(layer, "groups", 1) == 1
    return has_statistics and not norm.training and one_group


class _Fold:
    """A layer of the copy whose weight and bias are computed from its own and a BatchNorm's."""

    def __init__(self, layer: nn.Module, norm: nn.Module) -> None:
        self.layer, self.norm = layer, norm
        self.weight: torch.Tensor = layer._parameters["weight"]  # type: ignore[assignment]
        self.bias = layer._parameters["bias"]
        weight, bias = self.fused()
        layer._parameters["weight"] = _parameter(weight, self.weight)
        layer._parameters["bias"] = _parameter(bias, self.weight)
        norm.__class__ = _FOLDED[type(norm)]  # type: ignore[assignment]

    def fused(self) -> tuple[torch.Tensor, torch.Tensor]:
        """In float64, so that rounding to the layer's own dtype is the only one."""
        norm = self.norm
        doubled: Any = doubles.doubled
        mean, variance = doubled(norm.running_mean), doubled(norm.running_var)
        scale = torch.ones_like(mean) if norm.weight is None else doubled(norm.weight)
        shift = torch.zeros_like(mean) if norm.bias is None else doubled(norm.bias)
        own = doubled(self.weight), None if self.bias is None else doubled(self.bias)
        rest = mean, variance, norm.eps, scale, shift
        if isinstance(self.layer, nn.Linear):
            return fusion.fuse_linear_bn_weights(*own, *rest)  # type: ignore[arg-type]
        transposed = isinstance(self.layer, _TRANSPOSED)
        return fusion.fuse_conv_bn_weights(*own, *rest, transpose=transposed)  # type: ignore

    def write(self) -> None:
        weight, bias = self.fused()
        for name, values in (("weight", weight), ("bias", bias)):
            ours: Any = self.layer._parameters[name]
            ours.data.copy_(_rounded(values, ours))


def _parameter(values: torch.Tensor, like: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(_rounded(values.detach(), like), requires_grad=False)


def _rounded(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return doubles.returned(values.to(like.dtype), like)
