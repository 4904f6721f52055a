"""One attack on one network: what it finds, what it asks, and how long it takes."""

import time
from collections import Counter
from collections.abc import Callable

import torch
from torch import nn

from benchmarks.harness.networks import Problem
from benchmarks.minimum_norm.counted import Counted, distances
from benchmarks.minimum_norm.entrants import Attack

_OUTSIDE = 1e-6  # of [0, 1], which rounding explains


class Found:
    """What an attack found with every query looked at; returned, nearest: (n,) distances, inf where
    the model gives the returned point, or every query, the right label."""

    def __init__(self, attack: Attack, problem: Problem, norm: str) -> None:
        self.counted = Counted(problem.model, problem.x, problem.y, norm)
        x_adv = attack(self.counted, problem.x.clone(), problem.y.clone()).detach()
        self.returned: torch.Tensor = distances(x_adv, problem.x, norm)
        with torch.no_grad():
            self.returned[problem.model(x_adv).argmax(1) == problem.y] = torch.inf
        self.nearest: torch.Tensor = torch.minimum(self.returned, self.counted.nearest)


def outside(x_adv: torch.Tensor) -> int:
    """Returned points that are not finite or lie outside of [0, 1]."""
    rows = x_adv.detach().flatten(1)
    bad = ~rows.isfinite() | (rows < -_OUTSIDE) | (rows > 1 + _OUTSIDE)
    return int(bad.any(1).sum())


def model_alone(problem: Problem, counted: Counted) -> Callable[[], None]:
    """The passes of a run again, with the same numbers of rows, and nothing beside them."""
    calls = Counter((rows, times) for rows, times in counted.passed)
    model, x = problem.model, problem.x

    def run() -> None:
        for (rows, times), count in calls.items():
            some = x[torch.arange(rows) % len(x)]
            for _ in range(count):
                _passes(model, some, times)

    return run


def _passes(model: nn.Module, x: torch.Tensor, backwards: int) -> None:
    if backwards == 0:
        with torch.no_grad():
            model(x)
        return
    x = x.clone().requires_grad_(True)
    loss = model(x).sum()
    for done in range(backwards):
        torch.autograd.grad(loss, x, retain_graph=done + 1 < backwards)


def process_seconds(run: Callable[[], object]) -> float:
    began = time.process_time()
    run()
    return time.process_time() - began
