"""Seeded initialisation that leaves the global generators alone."""

from collections.abc import Callable
from itertools import chain
from typing import Literal, TypeVar

import torch
from torch import nn

_Model = TypeVar("_Model", bound=nn.Module)
_BATCHNORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

Initialisation = Literal["torch", "he"]


def build_seeded(
    build: Callable[[], _Model], *, seed: int, initialisation: Initialisation = "torch"
) -> _Model:
    """The module that build() makes, on the CPU, its weights drawn with seed: U(-b, b).

    "torch", torch's own default: weights and biases of Conv2d and Linear with b = 1 /
    sqrt(fan_in). "he": weights of Conv2d with b = sqrt(6 / fan_out), variance 2 / fan_out; all
    biases 0; weights of Linear as in "torch". Uniform, not normal: logarithms and cosines end in
    other bits on other machines. BatchNorm starts at weight 1, bias 0, mean 0, variance 1. The
    draws come from a generator of its own in the order of `modules()`. Unlike torch.manual_seed
    within fork_rng, this cannot reseed CUDA's generators either. Raises TypeError for a layer of
    another kind with parameters or buffers, ValueError for another initialisation.

    He et al. 2015, Delving Deep into Rectifiers, arXiv:1502.01852, section 2.2.
    """
    if initialisation not in ("torch", "he"):
        raise ValueError(f"initialisation must be 'torch' or 'he'; got {initialisation!r}.")
    generator = torch.Generator(device="cpu").manual_seed(seed)
    with torch.device("meta"):  # constructing there draws no random numbers
        model = build()
    model.to_empty(device="cpu")
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                _draw(layer, initialisation, generator)
            elif isinstance(layer, _BATCHNORM):
                layer.reset_parameters()  # constants only, the running statistics too
            elif any(True for _ in chain(layer.parameters(False), layer.buffers(False))):
                raise TypeError(
                    "build must make Conv2d, Linear and BatchNorm layers only; got "
                    f"{type(layer).__name__} with parameters or buffers. Initialise it here first."
                )
    return model


def _draw(
    layer: nn.Conv2d | nn.Linear, initialisation: Initialisation, generator: torch.Generator
) -> None:
    bound = layer.weight[0].numel() ** -0.5
    he = initialisation == "he"
    if he and isinstance(layer, nn.Conv2d):
        fan_out = layer.out_channels // layer.groups * layer.weight[0, 0].numel()
        bound = (6 / fan_out) ** 0.5
    layer.weight.uniform_(-bound, bound, generator=generator)
    if layer.bias is not None:
        if he:
            layer.bias.zero_()
        else:
            layer.bias.uniform_(-bound, bound, generator=generator)
