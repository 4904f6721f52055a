"""The adversarial-training steps of the papers as their authors coded them: plain cross-entropy.

Each function takes one minibatch through attack, forward, backward and optimizer.step() and returns
the training loss. x: (B, ...) in [0, 1]; y: (B,) labels; eps, step_size: input units. Random starts
come in as `noise`, so that two implementations can be given the same. Waste is kept where the
authors have it, because a comparison is with what they ran: `.backward()` in an attack fills the
weight gradients too, and zero_grad() throws them away.
"""

import torch
import torch.nn.functional as F
from torch import nn


def fast_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    eps: float,
    step_size: float,
    noise: torch.Tensor,
    clamp_start: bool,
) -> torch.Tensor:
    """Fast-AT: train on x + noise + step_size * sign(grad at x + noise), in the eps box and [0, 1].

    noise: uniform in (-eps, eps), like x. clamp_start: whether x + noise is brought into [0, 1]
    before the gradient is taken: True in the authors' CIFAR script, False in their MNIST script,
    which clamps the training input once more instead.

    Source: Wong, Rice and Kolter 2020, arXiv:2001.03994, algorithm 3.
    """
    delta = noise.clone()
    if clamp_start:
        delta = _into_image(delta, x)
    delta = _backward_step(model, x, y, delta.requires_grad_(), eps=eps, step_size=step_size)
    delta = delta.detach()
    x_adv = x + delta if clamp_start else (x + delta).clamp(0, 1)
    loss = F.cross_entropy(model(x_adv), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


def pgd_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    eps: float,
    step_size: float,
    steps: int,
    noise: torch.Tensor,
) -> torch.Tensor:
    """PGD training: `steps` times delta = clamp(delta + step_size * sign(grad)), then one update.

    The start noise, uniform in (-eps, eps), is clamped into the image. Crafted in whatever mode the
    model is in, which is training mode in the script; the weight gradients of all steps pile up.

    Source: Madry et al. 2018, arXiv:1706.06083, section 2.1, in the form of the PGD baseline of
    Wong, Rice and Kolter 2020.
    """
    delta = _into_image(noise, x).requires_grad_()
    for _ in range(steps):
        delta.data = _backward_step(model, x, y, delta, eps=eps, step_size=step_size).detach()
        assert delta.grad is not None
        delta.grad.zero_()
    loss = F.cross_entropy(model(x + delta.detach()), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


def free_replays(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    x: torch.Tensor,
    y: torch.Tensor,
    delta: torch.Tensor,
    *,
    eps: float,
    replays: int,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
) -> torch.Tensor:
    """Free-AT: `replays` times one backward gives the gradients of weights and delta; both step.

    delta: a leaf of at least B rows, zero in the beginning, which the caller keeps for the whole
    training: it is updated in place by eps * sign(grad), clamped to the eps box and, in the rows of
    this minibatch, into the image. Weights take the gradient at the old delta. scheduler: stepped
    once a replay. Returns the loss of the last replay.

    Source: Shafahi et al. 2019, arXiv:1904.12843, algorithm 1, in the form of the Free baseline of
    Wong, Rice and Kolter 2020.
    """
    delta.requires_grad_()
    rows = len(x)
    loss = torch.zeros(())
    for _ in range(replays):
        loss = F.cross_entropy(model(x + delta[:rows]), y)
        optimizer.zero_grad()
        loss.backward()
        assert delta.grad is not None
        delta.data = (delta + eps * delta.grad.detach().sign()).clamp(-eps, eps).detach()
        delta.data[:rows] = _into_image(delta[:rows], x).detach()
        optimizer.step()
        delta.grad.zero_()
        if scheduler is not None:
            scheduler.step()
    return loss


def nfgsm_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    step_size: float,
    noise: torch.Tensor,
) -> torch.Tensor:
    """N-FGSM: train on x + noise + step_size * sign(grad at x + noise), clamped to [0, 1] only.

    noise: uniform in (-k * eps, k * eps), k = 2 in the paper, first clamped into the image; there
    is no eps box. The gradient is asked of the noise alone, as in the authors' code.

    Source: de Jorge et al. 2022, arXiv:2202.01181, algorithm 1.
    """
    noise = _into_image(noise, x).requires_grad_()
    (grad,) = torch.autograd.grad(F.cross_entropy(model(x + noise), y), noise)
    delta = _into_image(noise.detach() + step_size * grad.sign(), x)
    loss = F.cross_entropy(model(x + delta), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


def _backward_step(
    model: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    delta: torch.Tensor,
    *,
    eps: float,
    step_size: float,
) -> torch.Tensor:
    """One sign step of the leaf `delta` by a full backward: eps box first, image second."""
    F.cross_entropy(model(x + delta), y).backward()
    assert delta.grad is not None
    stepped = (delta + step_size * delta.grad.detach().sign()).clamp(-eps, eps)
    return _into_image(stepped, x)


def _into_image(delta: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """delta clamped so that x + delta lies in [0, 1]."""
    return torch.max(torch.min(1 - x, delta), 0 - x)
