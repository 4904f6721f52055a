"""Models whose passes take a time that is said, not measured."""

from types import SimpleNamespace

import torch
from torch import nn

from fastadv.tuning import contest, measure


class Clock:
    """Seconds that models have been told to take."""

    def __init__(self) -> None:
        self.seconds: float = 0.0

    def __call__(self) -> float:
        return self.seconds

    def __deepcopy__(self, memo: dict) -> "Clock":
        return self


class Costly(nn.Module):
    """(B, C, H, W) to (B, 4) logits; a forward of `rows` takes cost(x, model) seconds."""

    def __init__(self, clock, cost, *, norm=False):
        super().__init__()
        self.clock, self.cost = clock, cost
        self.first = nn.Conv2d(3, 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(4) if norm else nn.Identity()
        self.last = nn.Linear(4 * 4, 4)

    def forward(self, x):
        self.clock.seconds += self.cost(x, self)
        return self.last(self.norm(self.first(x)).flatten(1))


def fake_time(monkeypatch) -> Clock:
    """Every clock of a tuning shows what models have taken."""
    clock = Clock()
    monkeypatch.setattr(contest, "clock_of", lambda device: (clock, "told"))
    for module in (contest, measure):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=clock))
    return clock


def samples(n=20):
    return torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def by_rows(best):
    """Least a sample at `best` rows, and twice as much for each doubling away from it."""

    def cost(x, model):
        rows = len(x)
        return 1e-4 * rows * max(rows / best, best / rows)

    return cost
