"""A small ensemble on a small network, alone, killed or as one of several processes:
python ensemble_runs.py CHECKPOINT REPORT PACE; and what can be compared of two reports."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from toy_models import Problem, mixed_problem, threat_of  # noqa: E402

import fastadv  # noqa: E402

BATCH = 2  # blocks of 16


def problem(n: int = 40) -> Problem:
    return mixed_problem(n, curvature=1.0)


def ensemble(norm: str = "linf", seed: int | None = 0):
    """Each of its attacks breaks some samples, and some are left."""
    threat = threat_of(norm)
    attacks = [
        fastadv.apgd_ce(threat, steps=1, seed=seed or 0),
        fastadv.apgd_t(threat, steps=3, n_target_classes=2, seed=seed or 0),
        fastadv.fab_t(threat, steps=3, n_target_classes=2, seed=seed or 0),
        fastadv.square(threat, queries=12, seed=seed or 0),
    ]
    return fastadv.autoattack(threat, version="custom", attacks=attacks, seed=seed)


def without_times(text: str) -> dict:
    """A report's JSON but for the clock."""
    return _without_seconds(json.loads(text))


def _without_seconds(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_seconds(one) for one in value]
    if not isinstance(value, dict):
        return value
    kept = {k: v for k, v in value.items() if not k.endswith("seconds") and k != "date"}
    return {name: _without_seconds(one) for name, one in kept.items()}


class Slow(torch.nn.Module):
    def __init__(self, model: torch.nn.Module, pause: float) -> None:
        super().__init__()
        self.model = model
        self.pause = pause

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(self.pause)
        return self.model(x)


def main(checkpoint: str, report: str, pace: str) -> None:
    torch.set_num_threads(1)
    p = problem()
    model = Slow(p.model, float(pace))
    fastadv.evaluate(
        model, (p.x, p.y), ensemble(), batch_size=BATCH, checkpoint=checkpoint or None
    ).save(report)


if __name__ == "__main__":
    main(*sys.argv[1:])
