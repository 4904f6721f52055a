"""Small models that are no classifiers, elementwise and so the same bits in any batch, with
samples, labels and the objective that judges them."""

from dataclasses import dataclass

import torch
from torch import nn
from toy_models import Quadratic

from fastadv import objectives
from fastadv.objective import Objective

IMAGE = (3, 4, 4)
IGNORED = 255


class Pixels(nn.Module):
    """(B, 3, H, W) to as many logits: products of pixels with those beside them."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.weight = nn.Parameter(torch.randn(3, 2, generator=generator))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = (self.weight[:, k, None, None] for k in range(2))
        return 3 * (x - 0.5) * first + x * x.roll(1, 1) * second + x.roll(1, 3)


class First(nn.Module):
    """The first `outputs` of a quadratic's; one of them alone as (B,) or (B, 1)."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.inner = Quadratic(48, 4, seed=2)
        self.shape = shape

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)[:, : max(1, *self.shape, 1)].reshape(len(x), *self.shape)


@dataclass(frozen=True)
class Judged:
    model: nn.Module
    x: torch.Tensor
    y: torch.Tensor
    objective: Objective


def _samples(n: int) -> torch.Tensor:
    return torch.rand(n, *IMAGE, generator=torch.Generator().manual_seed(6))


def segmented(n: int = 16) -> Judged:
    """Every seventh sample is wrong as it is, all have ignored pixels."""
    model, x = Pixels(), _samples(n)
    with torch.no_grad():
        y = model(x).argmax(1)
    y[::7] = (y[::7] + 1) % 3
    y[:, 0, 0] = IGNORED
    objective = objectives.segmentation(fraction=0.7, ignore_index=IGNORED)
    return Judged(model, x, y.to(torch.int16), objective)


def binary(shape: tuple[int, ...] = (1,), n: int = 16) -> Judged:
    """Labels are floats; every seventh is wrong."""
    model, x = First(shape), _samples(n)
    with torch.no_grad():
        y = (model(x).reshape(n) > 0).float()
    y[::7] = 1 - y[::7]
    return Judged(model, x, y, objectives.binary())


def labelled(n: int = 16) -> Judged:
    """Four labels a sample, bool, of which some are wrong."""
    model, x = First((4,)), _samples(n)
    with torch.no_grad():
        y = model(x) > 0
    y[::7, 0] = ~y[::7, 0]
    return Judged(model, x, y, objectives.multilabel(labels=(0, 2)))


def measured(n: int = 16) -> Judged:
    """Two numbers a sample in float64, of which some are off."""
    model, x = First((2,)), _samples(n)
    with torch.no_grad():
        y = model(x).double()
    y += torch.linspace(0.05, 0.8, n)[:, None]  # at y itself the gradient of (f - y)^2 is zero
    y[::7] += 9
    return Judged(model, x, y, objectives.regression(tolerance=0.9))


PROBLEMS = {
    "segmentation": segmented,
    "binary": binary,
    "multilabel": labelled,
    "regression": measured,
}
