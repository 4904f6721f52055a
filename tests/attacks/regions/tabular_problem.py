"""A table whose features have ranges of their own, and a model of it."""

import torch
from toy_models import Quadratic

FEATURES = 7
LOW = torch.tensor([[0.0, -3.0, 10.0, 0.0, -1.0, -torch.inf, 2.0]])
HIGH = torch.tensor([[1.0, 3.0, 900.0, 0.0, 1.0, torch.inf, 2.5]])  # the fourth cannot move
WIDTH = torch.where(HIGH > LOW, HIGH - LOW, torch.ones(())).nan_to_num(posinf=4.0)
CENTRE = torch.where(LOW.isinf(), 0.0, LOW)


class Scaled(Quadratic):
    """Sees features of like sizes."""

    def forward(self, x):
        return super().forward((x - CENTRE) / WIDTH)


def tabular(samples):
    """(model, x, y)."""
    generator = torch.Generator().manual_seed(2)
    model = Scaled(FEATURES, 4, seed=3, curvature=2.0)
    x = CENTRE + torch.rand(samples, FEATURES, generator=generator) * WIDTH
    x = torch.where(LOW == HIGH, LOW, x)
    with torch.no_grad():
        return model, x, model(x).argmax(1)
