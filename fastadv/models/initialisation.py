"""Seeded initialisation that leaves the global generators alone."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

_Model = TypeVar("_Model", bound=nn.Module)


def build_seeded(build: Callable[[], _Model], *, seed: int) -> _Model:
    """The module that build() makes, on the CPU, with parameters U(-b, b), b = 1 / sqrt(fan_in).

    This is torch's own default for Conv2d and Linear, the only layers admitted, drawn from a
    generator of its own in the order of `modules()`. Unlike torch.manual_seed within fork_rng,
    this cannot reseed CUDA's generators either. Raises TypeError for a layer with parameters of
    another kind.
    """
    generator = torch.Generator(device="cpu").manual_seed(seed)
    with torch.device("meta"):  # constructing there draws no random numbers
        model = build()
    model.to_empty(device="cpu")
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                bound = layer.weight[0].numel() ** -0.5
                for parameter in layer.parameters(recurse=False):
                    parameter.uniform_(-bound, bound, generator=generator)
            elif any(True for _ in layer.parameters(recurse=False)):
                raise TypeError(
                    f"build must make Conv2d and Linear layers only; got {type(layer).__name__} "
                    "with parameters. Initialise it here first."
                )
    return model
