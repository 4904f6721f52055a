"""The loops that `fastadv.textbook` does not have: momentum, and PGD that stops at a success."""

import torch
import torch.nn.functional as F
from torch import nn

from fastadv import textbook


def mifgsm(
    model: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    eps: float,
    steps: int,
    step_size: float,
    decay: float = 1.0,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> torch.Tensor:
    """MI-FGSM: m = decay * m + g / mean|g|, then a step along sign(m); from x itself.

    Unlike torchattacks, a zero gradient adds nothing to m instead of making it NaN.
    Source: Dong et al. 2018, arXiv:1710.06081, algorithm 1.
    """
    x_adv, momentum = x.clone(), torch.zeros_like(x)
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        loss = F.cross_entropy(model(x_adv), y, reduction="sum")
        (grad,) = torch.autograd.grad(loss, x_adv)
        size = grad.abs().flatten(1).mean(1).view(-1, *[1] * (x.ndim - 1))
        momentum = decay * momentum + (grad / size).nan_to_num(0.0)
        x_adv = x_adv.detach() + step_size * momentum.sign()
        x_adv = torch.min(torch.max(x_adv, x - eps), x + eps).clamp(*bounds)
    return x_adv


def pgd_first_success(
    model: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    eps: float,
    steps: int,
    step_size: float,
    norm: textbook.Norm = "linf",
) -> torch.Tensor:
    """PGD from x that keeps the first iterate of each sample that fools the model, else the last.

    The oracle of keep="first_success": the textbook step, one at a time, with every iterate of the
    whole batch evaluated.
    """
    chosen = x_adv = x.clone()
    fooled = _fooled(model, x, y)
    for _ in range(steps):
        # one step of the textbook loop: it takes any start, and projects around x
        x_adv = textbook.pgd(
            model, x, y, eps=eps, steps=1, step_size=step_size, norm=norm, x_init=x_adv
        )
        chosen = torch.where(_rows(fooled, x), chosen, x_adv)
        fooled |= _fooled(model, x_adv, y)
    return chosen


def _fooled(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(x).argmax(1) != y


def _rows(mask: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return mask.view(-1, *[1] * (like.ndim - 1))
