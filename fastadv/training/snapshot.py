"""Weights and optimizer state as they were at a good moment, to go back to.

Of all modules that the model reaches: one may hold its networks in a list.
"""

import copy
from typing import Any

import torch
from torch import nn

from fastadv import reach
from fastadv.training.craft import inner_module
from fastadv.training.verdict import Collapse


def taken(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Copies of both; raises `Collapse` for weights that are not finite."""
    weights = reach.state_of(inner_module(model))
    if not all(bool(w.isfinite().all()) for w in weights.values()):
        raise Collapse(
            "nan",
            "the weights are not finite, and the sentinel has seen no good ones: call "
            "sentinel.keep(model, optimizer) before the first batch",
        )
    return {
        "model": {name: value.clone() for name, value in weights.items()},
        "optimizer": copy.deepcopy(optimizer.state_dict()),
    }


def put_back(saved: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Weights and optimizer state; learning rates stay, they follow the user's schedule."""
    rates = [group["lr"] for group in optimizer.param_groups]
    reach.load_state(inner_module(model), saved["model"])
    optimizer.load_state_dict(copy.deepcopy(saved["optimizer"]))
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
