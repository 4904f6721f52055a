"""YOPO as its authors coded it: cheap attack steps through the first layer alone."""

import torch
import torch.nn.functional as F
from torch import nn


def yopo_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    first_layer: nn.Module,
    eps: float,
    step_size: float,
    outer: int,
    inner: int,
    noise: torch.Tensor,
) -> torch.Tensor:
    """YOPO-outer-inner: `outer` full passes, each followed by `inner` steps of the first layer.

    With h the first layer and p = -d loss / d h(x + delta) of a full pass held fixed, each inner
    step is delta -= step_size * sign(d H / d delta), H = sum(h(clamp(x + delta, 0, 1)) * p), then
    the eps box, then the image. The weight gradients of all full passes add up, and so does that of
    -H at the last delta, on top of them (the first layer is counted twice), before one update; the
    authors divide the learning rate by `outer`.

    first_layer: the module of `model` that x goes into, called once a forward. noise: uniform in
    (-eps, eps), not clamped into the image, so that pixels outside it have no gradient in the first
    inner step. Returns the loss of the first full pass, which the authors log; their one forward
    more, for a logged accuracy, is left out.

    Clamps that are differentiated have the gradient of the authors' torch, 1.0.1: 1 inside and at
    the bounds, 0 outside. It is written out, because since 2.14 torch has 0 at the bounds.

    Source: Zhang et al. 2019, arXiv:1905.00877, algorithm 1.
    """
    outputs: list[torch.Tensor] = []
    delta = noise.clone().requires_grad_()
    first_loss = None
    optimizer.zero_grad()
    for _ in range(outer):
        outputs.clear()
        hook = first_layer.register_forward_hook(lambda *call: outputs.append(call[2]))
        logits = model(x + delta.detach())
        hook.remove()
        outputs[0].retain_grad()
        loss = F.cross_entropy(logits, y)
        loss.backward()
        first_loss = loss if first_loss is None else first_loss
        assert outputs[0].grad is not None
        p = -outputs[0].grad.detach()
        for _ in range(inner):
            hamiltonian = (first_layer(_clamped(x + delta)) * p).sum()
            (grad,) = torch.autograd.grad(hamiltonian, delta)
            delta = (delta - step_size * grad.sign()).clamp(-eps, eps)
            delta = ((x + delta).clamp(0, 1) - x).detach().requires_grad_()
        (-(first_layer(_clamped(x + delta)) * p).sum()).backward()
    optimizer.step()
    optimizer.zero_grad()
    assert first_loss is not None, "outer is at least 1"
    return first_loss


def _clamped(x_adv: torch.Tensor) -> torch.Tensor:
    """clamp(x_adv, 0, 1), whose gradient is 1 in [0, 1] and 0 outside."""
    return torch.where((x_adv >= 0) & (x_adv <= 1), x_adv, x_adv.detach().clamp(0, 1))
