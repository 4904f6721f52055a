"""How many slots an attack holds in an evaluation whose caller does not say."""

from dataclasses import replace

import torch

from fastadv.ensemble.constructor import AutoAttack
from fastadv.execution import Execution
from fastadv.isolation import Model
from fastadv.oracle import pass_size


def unsized(execution: Execution, attack: object, model: Model, x: torch.Tensor) -> Execution:
    """`execution` without its batch_size, where `attack` then finds out what is fast at x: one of
    the user's own may take None for all of x, so that it is told a size."""
    is_ours = isinstance(attack, AutoAttack) or hasattr(attack, "resolved_loss")
    if is_ours and pass_size.may_split(model, x):
        return replace(execution, batch_size=None)
    return execution
