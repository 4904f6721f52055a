"""The networks and their points, and the least distances that were known before."""

import json
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from benchmarks.autoattack.cases import loader_of
from benchmarks.harness.networks import Problem

MODELS = (
    "mnist_kw_0.1",
    "mnist_tf",
    "mnist_wong_0.3",
    "cifar_wide_kw",
    "cifar_sgd_8px",
    "cifar_madry_8px",
)
Which = Literal["report", "tune"]
_SHARE = 64
_FEWER = {"mnist_tf": 32}  # a slow network
_READ = 500  # test points, of which a third are right on the weakest network


def load(folder: Path, name: str, which: Which) -> Problem:
    """The model and the first correct test points, or, to tune on, those from the 65th on."""
    loader = loader_of(folder)
    model, x, y = loader.load(name, n=_READ)
    for parameter in model.parameters():
        parameter.requires_grad_(True)  # as users have them
    right = _right(model, x, y)
    first = _FEWER.get(name, _SHARE)
    rows = right[:first] if which == "report" else right[_SHARE : 2 * _SHARE]
    data = f"{loader.info(name)['dataset']}, correct test points"
    return Problem(name, data, model, x[rows], y[rows])


def _right(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return (model(x).argmax(1) == y).nonzero()[:, 0]


def stored_least(folder: Path, name: str, norm: str) -> torch.Tensor | None:
    """(n,) float64 of the points to report, where the folder of the models holds references."""
    path = folder / "reference" / "minimum_norm" / f"{name}__{norm}.json"
    if not path.exists():
        return None
    found = json.loads(path.read_text())["optimum"]["distance"]
    return torch.tensor(found, dtype=torch.float64)
