"""A problem of two classes, of which half precision may make something else."""

import torch
from torch import nn

from benchmarks.harness.networks import Problem

EPS = 0.1
LEVELS = [0.1, 0.41, 0.45, 0.55, 0.59, 0.9]  # at EPS the middle four fall


class Halves(nn.Module):
    """Two classes by the first pixel, apart at 0.5; in half precision what `half` makes of it."""

    def __init__(self, half=lambda logits: logits):
        super().__init__()
        self.half = half

    def forward(self, x):
        level = x[:, 0, 0, 0]
        logits = 10 * torch.stack([0.5 - level, level - 0.5], 1)
        return self.half(logits) if torch.is_autocast_enabled("cpu") else logits


def problem_of(model: nn.Module, levels: list[float]) -> Problem:
    x = torch.tensor(levels).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
    return Problem("halves", "levels", model, x, (x[:, 0, 0, 0] > 0.5).long())
