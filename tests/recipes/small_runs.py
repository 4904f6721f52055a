"""Runs on a few digits, and comparisons of finished ones."""

import dataclasses
from pathlib import Path
from typing import Any

import torch

from fastadv.recipes import Recipe, recipe, training_data
from fastadv.recipes.run_log import read_log


def small_data(n: int = 120) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = training_data("digits")
    return images[:n], labels[:n]


def small_recipe(method: str = "fast", **changes: Any) -> Recipe:
    """Three epochs of 3 batches, the sentinel after every second batch."""
    chosen = recipe("digits", method, epochs=3, batch_size=32, on_collapse="warn")
    chosen = dataclasses.replace(chosen, label_smoothing=0.0, sentinel_every=0.7)
    return dataclasses.replace(chosen, **changes)


def loaded(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)


def rows_without_times(out: Path) -> list[dict]:
    rows = read_log(out / "log.jsonl")
    for row in rows:
        row.pop("seconds", None)
    return rows


def assert_same_run(out: Path, other: Path) -> None:
    """The same bits: final weights, best weights and log, times aside."""
    for name in ("model.pt", "best.pt"):
        mine, theirs = (loaded(f / name) for f in (out, other))
        assert mine.keys() == theirs.keys()
        for key in mine:
            assert torch.equal(mine[key], theirs[key]), (name, key)
    assert rows_without_times(out) == rows_without_times(other)
