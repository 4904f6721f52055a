"""Averages of the weights along training: torch's AveragedModel with the averages of this field."""

from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_swa_multi_avg_fn

from fastadv.ops import doubles
from fastadv.reach import every_parameter
from fastadv.training.craft import inner_module


def ema(model: nn.Module, decay: float = 0.995) -> AveragedModel:
    """The moving average w_ema = d_t w_ema + (1 - d_t) w, d_t = min(decay, (1 + t) / (10 + t)).

    Call `.update_parameters(model)` after each optimizer step and attack or evaluate the average
    itself; buffers (running statistics) are copied, not averaged. decay: 0.995 suits 10 to 30
    epochs of CIFAR-10, 0.9995 matures after about 60. Its state_dict is an nn.Module's.
    Raises ValueError where nets that are trained lie outside of the module's own, as in a list.

    Example: `average = fastadv.training.ema(net); ...; average.update_parameters(net)`.
    Source: Rebuffi et al. 2021, arXiv:2103.01946.
    """
    if not 0 < decay < 1:
        raise ValueError(f"decay must lie in (0, 1); got {decay}")

    @torch.no_grad()
    def update(averaged: Any, current: Any, updates: Any) -> None:
        # AveragedModel moves the count to the weights' device: reading it would synchronise
        kept = ((1 + updates).to(doubles.widest(updates)) / (10 + updates)).clamp(max=decay)
        moves = torch._foreach_sub(current, averaged)  # type: ignore[attr-defined]
        torch._foreach_mul_(moves, 1 - kept)  # type: ignore[attr-defined]
        torch._foreach_add_(averaged, moves)  # type: ignore[attr-defined]

    return AveragedModel(_averageable(model), multi_avg_fn=update)


def swa(model: nn.Module) -> AveragedModel:
    """The plain mean of the weights at each `.update_parameters(model)` (once an epoch, say).

    Example: `average = fastadv.training.swa(net); ...; average.update_parameters(net)`.
    Source: Izmailov et al. 2018, arXiv:1803.05407.
    """
    return AveragedModel(_averageable(model), multi_avg_fn=get_swa_multi_avg_fn())


def _averageable(model: nn.Module) -> nn.Module:
    inner = inner_module(model)
    if not isinstance(inner, nn.Module):
        raise TypeError(f"model must be an nn.Module; got {type(inner).__name__}")
    own = {id(p) for p in inner.parameters()}
    beside = [p for p in every_parameter(inner) if id(p) not in own and p.requires_grad]
    if beside or not own:
        raise ValueError(
            f"only a model's own parameters are averaged: {type(inner).__name__} has {len(own)}, "
            f"and reaches {len(beside)} more that are trained. Put its nets in an nn.ModuleList, "
            "or freeze those that are not trained by net.requires_grad_(False)"
        )
    return inner
