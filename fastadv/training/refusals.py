"""What cannot be trained by recorded steps, and why."""

import torch
from torch import nn

from fastadv.graphs import parallel
from fastadv.isolation import Model
from fastadv.training import arguments
from fastadv.training.methods import Step, check_step


def refusal_of_model(model: Model) -> str | None:
    """Why steps of a model cannot be recorded, before anything is tried."""
    if isinstance(model, parallel.WRAPPERS) or arguments.is_distributed():
        return parallel.REDUCED
    if not isinstance(model, nn.Module):
        return (
            f"the model is a {type(model).__name__}: of an nn.Module alone is it known what a "
            "recording relies on"
        )
    return None


def check(step: Step, optimizer: object, clip_norm: float | None) -> None:
    check_step(step)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer; got {optimizer!r}")
    if step.precision == "fp16":
        raise ValueError("precision='fp16' needs a loss scaler, which waits: use 'bf16'")
    if clip_norm is not None and not clip_norm > 0:
        raise ValueError(f"clip_norm must be positive or None; got {clip_norm!r}")


def check_autocast(device: torch.device) -> None:
    kind = device.type
    if torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16:
        raise ValueError("autocast to float16 needs a loss scaler, which waits: use bfloat16")
