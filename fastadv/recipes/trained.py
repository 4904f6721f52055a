"""What a training run left in its folder: the network with its weights, recipe and figures."""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from fastadv import models
from fastadv.recipes.run_log import Row, read_log
from fastadv.recipes.settings import Recipe
from fastadv.recipes.weights import load_weights


class Figures(NamedTuple):
    """Accuracy on n held-out training samples after an epoch: clean, and under `attack`."""

    epoch: int
    clean: float
    robust: float
    n: int
    attack: str

    def __str__(self) -> str:
        return (
            f"{100 * self.clean:.1f} % clean, {100 * self.robust:.1f} % under {self.attack}, on "
            f"{self.n} held-out training samples after epoch {self.epoch}"
        )


@dataclass(frozen=True, eq=False, repr=False)
class TrainedRun:
    """A run as `load_run` reads it.

    folder: where. weights: the file that was loaded. model: the network with these weights, in eval
    mode. recipe: all that decided the run. rows: of its log, a dictionary an event. held_out: the
    figures of the epoch that the weights are of, None where the log does not say.
    """

    folder: Path
    weights: Path
    model: nn.Module
    recipe: Recipe
    rows: tuple[Row, ...]
    held_out: Figures | None

    def __repr__(self) -> str:
        recipe = self.recipe
        return (
            f"<TrainedRun {self.weights}: {recipe.model} by {recipe.method} on {recipe.dataset}, "
            f"{recipe.norm} eps={recipe.eps:.4g}\n {self.held_out}>"
        )


def load_run(
    folder: str | os.PathLike[str],
    *,
    weights: str | os.PathLike[str] | None = None,
    model: nn.Module | None = None,
    device: torch.device | str = "cpu",
) -> TrainedRun:
    """What `fastadv train` or `fastadv.recipes.train` wrote to `folder`, ready to be attacked.

    weights: a file to load in place of the folder's model.pt, as run/best.pt; averaged weights
    (`ema`) load into the plain network. model: for a run on a network of one's own, a new one of
    it. Files are read as tensors and plain values, and nothing in them is executed, which is why a
    network of one's own is not looked up by its name. Raises FileNotFoundError where there is no
    run or no final weights yet, ValueError for files that do not fit.

    Example: `run = fastadv.load_run("run")`, then `fastadv.evaluate(run.model, (x, y), attack)`.
    """
    path = Path(folder)
    rows, recipe = read_recipe(path)
    chosen = path / "model.pt" if weights is None else Path(weights)
    if weights is None and not chosen.is_file():
        best = path / "best.pt"
        other = f"; the best weights so far are in {best}: give these" if best.is_file() else ""
        raise FileNotFoundError(
            f"{path} has no model.pt: the run has not finished. Go on with --resume{other}"
        )
    if model is None:
        if recipe.is_own_model:
            raise ValueError(
                f"{path} trained a network of its own, {recipe.model}, which is not looked up: "
                "give it as model"
            )
        model = models.build(recipe.model, classes=recipe.classes)  # type: ignore[arg-type]
    load_weights(model, chosen)
    epoch = _epoch_of(chosen.name, rows) if chosen.parent.resolve() == path.resolve() else None
    return TrainedRun(path, chosen, model.to(device).eval(), recipe, rows, _figures(rows, epoch))


def read_recipe(folder: Path) -> tuple[tuple[Row, ...], Recipe]:
    """(rows of the log, the recipe); raises as `load_run`."""
    log = folder / "log.jsonl"
    if folder.is_file():
        raise FileNotFoundError(f"{folder} is a file: give the folder of the run, {folder.parent}")
    if not log.is_file():
        raise FileNotFoundError(f"{folder} holds no run of fastadv train: no such file: {log}")
    try:
        rows = tuple(read_log(log))
        recipes = [row["recipe"] for row in rows if row["event"] in ("run", "raised")]
        return rows, _recipe(recipes[-1])
    except (ValueError, TypeError, KeyError, IndexError, json.JSONDecodeError) as error:
        raise ValueError(f"{log} is not the log of a run: {type(error).__name__}: {error}") from (
            error
        )


def _recipe(values: Mapping[str, Any]) -> Recipe:
    """From JSON, which has lists; fields that an older version lacked have their defaults."""
    known = {field.name for field in fields(Recipe)}
    if unknown := values.keys() - known:
        raise ValueError(f"a recipe has no {', '.join(sorted(unknown))}")
    knots = tuple((float(epoch), float(rate)) for epoch, rate in values["learning_rate"])
    return Recipe(**{**values, "learning_rate": knots})


def _epoch_of(file: str, rows: tuple[Row, ...]) -> int | None:
    epochs = [r for r in rows if r["event"] == "epoch" and math.isfinite(float(r["loss"]))]
    if not epochs:
        return None
    if file == "model.pt":
        return epochs[-1]["epoch"]
    if file != "best.pt":
        return None
    return max(epochs, key=lambda row: (row["robust"], -row["epoch"]))["epoch"]


def _figures(rows: tuple[Row, ...], epoch: int | None) -> Figures | None:
    for row in rows:
        if epoch is not None and row["event"] == "epoch" and row["epoch"] == epoch:
            return Figures(epoch, row["clean"], row["robust"], row["n"], row["attack"])
    return None
