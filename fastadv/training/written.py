"""What a recorded training step may leave changed."""

from typing import Any

import torch
from torch import nn

from fastadv import reach
from fastadv.training.held_batch import HeldBatch


def written(
    step: Any, model: nn.Module, optimizer: torch.optim.Optimizer, held: HeldBatch
) -> dict[str, torch.Tensor]:
    """Weights, buffers, the optimizer's state, the step's own tensors and its losses, by names."""
    named = reach.named_parameters(model) | reach.named_buffers(model) | held.losses
    names = {tensor: name for name, tensor in named.items()}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for i, p in enumerate(parameters):
        name = names.get(p, f"parameter {i}")
        named[name] = p
        for of, value in optimizer.state.get(p, {}).items():
            if isinstance(value, torch.Tensor):
                named[f"the optimizer's {of} of {name}"] = value
    bank, delta = getattr(step, "bank", None), getattr(step, "delta", None)
    if bank is not None:
        named["the bank"] = bank.levels
    if delta is not None:
        named["delta"] = delta
    return named
