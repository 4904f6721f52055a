"""Counts passes through a network in units of one layer: forward, to its input, to its weights."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode


@dataclass(frozen=True)
class WorkUnits:
    """Passes of one batch: forward, backward to the inputs of a layer, gradients of its weights."""

    forward: int
    backward: int
    weight: int

    @property
    def total(self) -> int:
        return self.forward + self.backward + self.weight


def count_units(run: Callable[[], object], model: nn.Module) -> WorkUnits:
    """What `run()` does with `model`, by counting the convolutions of its last convolution layer.

    Every layer behind the first costs one unit for each of the three; the first needs no gradient
    of its input while training. Layers are told apart by the shape of their weights, which also
    holds under autocast and where weights are replaced; layers of one shape count as one. Ops
    inside `run` are counted as they are dispatched: a second call of a convolution in a forward
    pass, or a double backward, counts as often as it runs. Raises ValueError if the model has no
    convolution behind its first layer whose shape is not that of the first.

    Example: `count_units(lambda: step.loss(net, x, y).backward(), net).total  # FastAT: 5`.
    """
    layers = [m for m in model.modules() if isinstance(m, _CONVOLUTIONS)]
    shapes = [tuple(m.weight.shape) for m in layers]
    inner = [shape for shape in shapes if shape != shapes[0]]
    if not inner:
        raise ValueError(
            f"model must have a convolution of another shape than its first; got {shapes}"
        )
    shape = inner[-1]
    with _Convolutions(shape) as seen:
        run()
    alike = shapes.count(shape)
    counts = (seen.forward, seen.backward, seen.weight)
    if any(count % alike for count in counts):
        raise ValueError(f"the {alike} layers of shape {shape} ran unequally often: {counts}")
    return WorkUnits(*(count // alike for count in counts))


_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class _Convolutions(TorchDispatchMode):
    """Counts the convolutions with a weight of one shape, and the gradients that are asked for."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape
        self.forward = self.backward = self.weight = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func is torch.ops.aten.convolution.default:
            self.forward += tuple(args[1].shape) == self.shape
        elif func is torch.ops.aten.convolution_backward.default:
            if tuple(args[2].shape) == self.shape:
                to_input, to_weight, _ = args[-1]  # the output mask
                self.backward += to_input
                self.weight += to_weight
        return func(*args, **(kwargs or {}))
