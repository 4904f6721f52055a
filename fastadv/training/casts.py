"""Weights that autocast casts once for all passes of a craft, instead of in each of them."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from fastadv.isolation import Model
from fastadv.reach import every_module

_LAYERS = (
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.MultiheadAttention),
)
_FORWARDS = {layer.forward for layer in _LAYERS}


@contextlib.contextmanager
def kept(model: Model, device: torch.device) -> Iterator[list[nn.Parameter]]:
    """The weights whose casts autocast keeps as long as they require a gradient; none without
    autocast. Keeps no cast from before, and none for what comes after.

    Autocast keeps the casts of float32 leaves that require a gradient, and of no others: a frozen
    weight is cast in each pass. Eager autograd computes no gradient of these weights where only the
    input's is asked for, so they need not be frozen. But a linear layer then keeps its input until
    the backward pass, as it does in training.

    None of a model that is compiled: its backward would compute their gradients, and the casts are
    part of what is compiled. Of other layers than torch's own too none, for their backward is not
    known.
    """
    kind = device.type
    if not (torch.is_autocast_enabled(kind) and torch.is_autocast_cache_enabled()):
        yield []
        return
    # what a surrounding autocast has kept may be older than the weights; what is kept here may
    # have been cast under no_grad, and would cut a later pass off from them
    torch.clear_autocast_cache()
    try:
        yield _weights(model)
    finally:
        torch.clear_autocast_cache()


def _weights(model: Model) -> list[nn.Parameter]:
    modules = every_module(model)
    if hasattr(model, "_torchdynamo_orig_callable") or any(map(_is_compiled, modules)):
        return []
    layers = (m for m in modules if getattr(type(m), "forward", None) in _FORWARDS)
    return [p for m in layers for p in m.parameters(recurse=False)]


def _is_compiled(module: nn.Module) -> bool:
    """By torch.compile(module), module.compile(), or a forward of its own that may be."""
    return (
        "_orig_mod" in module._modules
        or module._compiled_call_impl is not None
        or "forward" in vars(module)
    )
