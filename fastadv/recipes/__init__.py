"""Adversarial training by recipe: published settings by name, runs that survive kill -9."""

from fastadv.recipes.published import DATASETS, METHODS, recipe
from fastadv.recipes.run import Result, train
from fastadv.recipes.settings import Recipe
from fastadv.recipes.sources import training_data
from fastadv.recipes.trained import Figures, TrainedRun, load_run
from fastadv.recipes.weights import load_weights, read_weights

__all__ = [
    "DATASETS",
    "METHODS",
    "Figures",
    "Recipe",
    "Result",
    "TrainedRun",
    "load_run",
    "load_weights",
    "read_weights",
    "recipe",
    "train",
    "training_data",
]


def __dir__() -> list[str]:
    return sorted(__all__)
