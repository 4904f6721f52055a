"""The adversarial-training steps whose loss compares clean with adversarial outputs.

Conventions as in `benchmarks.reference.training`. Both craft in eval mode, by a gradient that is
asked of the input alone, and both leave the model in training mode, whatever it was in.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn


def trades_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    eps: float,
    step_size: float,
    steps: int,
    beta: float,
    noise: torch.Tensor,
) -> torch.Tensor:
    """TRADES: CE(f(x), y) + beta / B * sum KL(softmax f(x) || softmax f(x_adv)), then one update.

    x_adv ascends the same KL from x + noise, noise being 0.001 times standard normals. The clean
    output is computed anew, with its graph, in each of the steps and twice in the loss: 39 passes
    at 10 steps where 27 are needed.

    Source: Zhang et al. 2019, arXiv:1901.08573, algorithm 1.
    """

    def divergence(x_adv: torch.Tensor) -> torch.Tensor:
        log_adversarial = F.log_softmax(model(x_adv), dim=1)
        return F.kl_div(log_adversarial, F.softmax(model(x), dim=1), reduction="sum")

    model.eval()
    x_adv = _ascend(divergence, x, noise, eps=eps, step_size=step_size, steps=steps)
    model.train()
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y) + beta * (1.0 / len(x)) * divergence(x_adv)
    loss.backward()
    optimizer.step()
    return loss


def mart_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    eps: float,
    step_size: float,
    steps: int,
    beta: float,
    noise: torch.Tensor,
) -> torch.Tensor:
    """MART: mean BCE(p_adv, y) + beta * mean KL(p || p_adv) * (1 - p_y), then one update.

    BCE(p, y) = -log p_y - log(1 - max over k != y of p_k); p and p_adv are the softmax outputs at x
    and at x_adv, which ascends the cross-entropy from x + noise (0.001 times standard normals). The
    constants 1.0001, 1.0000001 and 1e-12, which keep logarithms finite, are those of the authors.

    Source: Wang et al. 2020, Improving adversarial robustness requires revisiting misclassified
    examples, equation 12.
    """
    model.eval()
    x_adv = _ascend(
        lambda x_adv: F.cross_entropy(model(x_adv), y),
        x,
        noise,
        eps=eps,
        step_size=step_size,
        steps=steps,
    )
    model.train()
    optimizer.zero_grad()
    logits, logits_adv = model(x), model(x_adv)
    p, p_adv = F.softmax(logits, dim=1), F.softmax(logits_adv, dim=1)
    ranked = p_adv.argsort(dim=1)
    rival = torch.where(ranked[:, -1] == y, ranked[:, -2], ranked[:, -1])
    boosted = F.cross_entropy(logits_adv, y) + F.nll_loss((1.0001 - p_adv + 1e-12).log(), rival)
    divergence = F.kl_div((p_adv + 1e-12).log(), p, reduction="none").sum(1)
    doubt = 1.0000001 - p.gather(1, y[:, None])[:, 0]
    loss = boosted + beta * (1.0 / len(x)) * (divergence * doubt).sum()
    loss.backward()
    optimizer.step()
    return loss


def _ascend(
    objective: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    noise: torch.Tensor,
    *,
    eps: float,
    step_size: float,
    steps: int,
) -> torch.Tensor:
    """Sign steps on `objective` from x + noise: eps box first, [0, 1] second."""
    x_adv = x + noise
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        (grad,) = torch.autograd.grad(objective(x_adv), x_adv)
        x_adv = x_adv.detach() + step_size * grad.sign()
        x_adv = torch.min(torch.max(x_adv, x - eps), x + eps).clamp(0, 1)
    return x_adv.detach().clamp(0, 1)
