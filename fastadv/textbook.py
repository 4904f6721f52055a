"""FGSM and PGD as papers and tutorials write them: the yardstick of the demo and the benchmarks.

Plain PyTorch, one framework call for each arrow of the formula, no early stop, every restart of
every sample. Nothing of fastadv is used, so that agreement means something and a ratio is fair.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

Norm = Literal["linf", "l2"]


def fgsm(
    model: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    eps: float,
    norm: Norm = "linf",
    bounds: tuple[float, float] = (0.0, 1.0),
) -> torch.Tensor:
    """The fast gradient sign method: clamp(x + eps * sign(grad), bounds).

    In L2 the step is eps * grad / ||grad||. Arguments as in `pgd`.
    Source: Goodfellow et al. 2015, arXiv:1412.6572.
    """
    return pgd(
        model, x, y, eps=eps, steps=1, step_size=eps, norm=norm, bounds=bounds, random_start=False
    )


def pgd(
    model: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    eps: float,
    steps: int,
    step_size: float,
    norm: Norm = "linf",
    bounds: tuple[float, float] = (0.0, 1.0),
    restarts: int = 1,
    random_start: bool = True,
    x_init: torch.Tensor | None = None,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Projected gradient descent on the negative cross-entropy; the last iterate of each restart.

    x: (B, ...) in bounds. y: (B,) labels. eps, step_size: input units. norm: "linf" or "l2".
    x_init: the start of every restart in place of a random one. Of several restarts a sample gets
    the first that fools the model, else the one of highest loss. Raises ValueError for another
    norm.

    Example: `textbook.pgd(net, x, y, eps=8 / 255, steps=50, step_size=2 / 255, restarts=10)`.
    Source: Madry et al. 2018, arXiv:1706.06083, section 2.1.
    """
    if norm not in ("linf", "l2"):
        raise ValueError(f"norm must be 'linf' or 'l2'; got {norm!r}")
    chosen = x.clone()
    highest = torch.full((len(x),), -float("inf"), device=x.device)
    for _ in range(restarts):
        x_adv = x.clone() if x_init is None else x_init.clone()
        if x_init is None and random_start:
            x_adv = (x + _random_offset(x, eps, norm, generator)).clamp(*bounds)
        for _ in range(steps):
            x_adv = x_adv.detach().requires_grad_()
            # the sum, not the mean: a sample's gradient must not depend on the batch size
            loss = F.cross_entropy(model(x_adv), y, reduction="sum")
            (grad,) = torch.autograd.grad(loss, x_adv)
            x_adv = _step(x_adv.detach(), grad, x, eps, step_size, norm).clamp(*bounds)
        if restarts == 1:
            return x_adv
        with torch.no_grad():
            logits = model(x_adv)
            rank = F.cross_entropy(logits, y, reduction="none")
            rank[logits.argmax(1) != y] = float("inf")
        better = rank > highest
        chosen[better], highest[better] = x_adv[better], rank[better]
    return chosen


def _random_offset(
    x: torch.Tensor, eps: float, norm: Norm, generator: torch.Generator | None
) -> torch.Tensor:
    if norm == "linf":
        return torch.empty_like(x).uniform_(-eps, eps, generator=generator)
    direction = torch.empty_like(x).normal_(generator=generator)
    # u^(1/d) of the radius: uniform in the ball
    radius = torch.rand(len(x), generator=generator, dtype=x.dtype, device=x.device)
    radius = eps * radius ** (1 / x[0].numel())
    return direction / _norms(direction) * _column(radius, x)


def _step(
    x_adv: torch.Tensor,
    grad: torch.Tensor,
    x: torch.Tensor,
    eps: float,
    step_size: float,
    norm: Norm,
) -> torch.Tensor:
    if norm == "linf":
        x_adv = x_adv + step_size * grad.sign()
        return torch.min(torch.max(x_adv, x - eps), x + eps)
    delta = x_adv + step_size * grad / _norms(grad) - x
    return x + delta * (eps / _norms(delta)).clamp(max=1.0)


def _norms(rows: torch.Tensor) -> torch.Tensor:
    smallest = torch.finfo(rows.dtype).tiny  # a zero gradient gives a zero step, not 0/0
    return _column(rows.flatten(1).norm(dim=1).clamp(min=smallest), rows)


def _column(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))
