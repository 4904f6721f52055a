"""PGD over some elements only, in plain PyTorch and written down apart from fastadv."""

import math

import torch
import torch.nn.functional as F


def input_gradient(model, x_adv, y):
    leaf = x_adv.detach().requires_grad_()
    loss = F.cross_entropy(model(leaf), y, reduction="sum")
    return torch.autograd.grad(loss, leaf)[0]


def pgd_linf(model, x, y, start, *, mask, eps, step_size, steps, lo, hi):
    """mask, eps, step_size, lo, hi: tensors that broadcast to x, or floats."""
    x_adv = start.clone()
    for _ in range(steps):
        grad = input_gradient(model, x_adv, y)
        moved = x_adv + step_size * grad.sign()
        moved = torch.min(torch.max(moved, x - eps), x + eps)
        moved = torch.min(torch.max(moved, torch.as_tensor(lo)), torch.as_tensor(hi))
        x_adv = torch.where(mask, moved, x)
    return x_adv


def pgd_l2(model, x, y, start, *, mask, eps, step_size, steps, lo, hi):
    """The ball is ||(x_adv - x) / eps|| <= 1 and step_size a length in it; of one eps for all
    elements, the usual one."""

    def column(norms):
        return norms.view(-1, *[1] * (x.ndim - 1)).clamp_min(1e-30)

    def length(v):
        return column(v.flatten(1).norm(dim=1))

    x_adv = start.clone()
    for _ in range(steps):
        scaled = input_gradient(model, x_adv, y) * eps * mask
        u = x_adv - x + step_size * eps * scaled / length(scaled)
        u = u * (1 / length(u / eps)).clamp(max=1.0)
        x_adv = torch.where(mask, torch.clamp(x + u, torch.as_tensor(lo), torch.as_tensor(hi)), x)
    return x_adv


def pgd_l1(model, x, y, start, *, mask, eps, step_size, steps, lo, hi, sparsity):
    """In float64, of the elements in `mask` alone, in units of eps: the step, the ball, bounds."""
    x_adv = start.clone()
    for _ in range(steps):
        grads = input_gradient(model, x_adv, y).double()
        for row, (grad, inside) in enumerate(zip(grads, mask.expand_as(x), strict=True)):
            unit = eps.expand_as(x)[row][inside].double()
            scaled = grad[inside] * unit
            count = max(1, math.ceil(sparsity * len(scaled)))
            chosen = scaled.abs().topk(count).indices
            z = (x_adv[row][inside].double() - x[row][inside]) / unit
            z[chosen] += step_size / count * scaled[chosen].sign()
            moved = x[row][inside] + _in_the_l1_ball(z) * unit
            low, high = (side.expand_as(x)[row][inside] for side in (lo, hi))
            x_adv[row][inside] = torch.clamp(moved.float(), low, high)
    return x_adv


def _in_the_l1_ball(z):
    """The nearest point to z of norm at most 1 (Duchi et al. 2008)."""
    magnitude = z.abs().sort(descending=True).values
    excess = (magnitude.cumsum(0) - 1) / torch.arange(1, len(z) + 1)
    threshold = excess[(magnitude > excess).nonzero().max()].clamp(min=0)
    return z.sign() * (z.abs() - threshold).clamp(min=0)
