"""Small problems for objectives, of mixed outcomes, with models that answer a sample alike in any
batch: pixels, several labels, and a mask that goes beside the input."""

from dataclasses import dataclass

import torch
from torch import nn
from toy_models import Quadratic, mixed_problem, threat_of

import fastadv
from fastadv.objective import Objective

IGNORED = 255


@dataclass(frozen=True)
class Judged:
    """data: (x, y, *extra)."""

    model: nn.Module
    data: tuple[torch.Tensor, ...]
    objective: Objective | None = None

    @property
    def attack(self) -> fastadv.attacks.Attack:
        loss = {"loss": self.objective} if self.objective else {}
        return fastadv.pgd(threat_of("linf"), steps=3, seed=3, **loss)


class Pixelwise(nn.Module):
    """(B, C, H, W) logits of (B, 3, H, W) images, by each pixel's own values: elementwise."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.weight = nn.Parameter(2 * torch.randn(classes, 2, 3, generator=generator))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        planes = []
        for linear, squared in self.weight:
            plane = torch.zeros_like(x[:, 0])
            for k in range(3):
                values = x[:, k] - 0.5
                plane = plane + linear[k] * values + squared[k] * values * values
            planes.append(plane)
        return torch.stack(planes, 1)


class Masked(nn.Module):
    """The mask is a second input."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.model(x * mask)


def _images(n: int) -> tuple[torch.Tensor, torch.Generator]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand((n, 3, 4, 4), generator=generator), generator


def segmentation(n: int = 40) -> Judged:
    """Every ninth sample is a success as it is; a few pixels do not count."""
    model = Pixelwise()
    x, generator = _images(n)
    y = model(x).argmax(1)
    y[::9] = (y[::9] + 1) % 3
    y[torch.rand(y.shape, generator=generator) < 0.1] = IGNORED
    objective = fastadv.objectives.segmentation(fraction=0.6, ignore_index=IGNORED)
    return Judged(model, (x, y), objective)


def multilabel(n: int = 40) -> Judged:
    model = Quadratic(48, classes=5, curvature=1.0)
    x, _ = _images(n)
    y = (model(x) > 0).to(torch.uint8)
    y[::9, 2] = 1 - y[::9, 2]
    return Judged(model, (x, y), fastadv.objectives.multilabel(labels=(0, 2)))


def masked(n: int = 40) -> Judged:
    p = mixed_problem(n, curvature=1.0)
    generator = torch.Generator().manual_seed(4)
    mask = torch.rand(p.x.shape, generator=generator) < 0.7
    model = Masked(p.model)
    y = model(p.x, mask).argmax(1)
    y[::9] = (y[::9] + 1) % 5
    return Judged(model, (p.x, y, mask))


CASES = {"segmentation": segmentation, "multilabel": multilabel, "masked": masked}
