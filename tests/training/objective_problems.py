"""Tasks that are no classification, each with the loss as one would write it, and plain loops."""

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from training_problems import batches, conv_net, train_batch, uniform

import fastadv
from fastadv import objectives

EPS = 0.1
THREAT = fastadv.Linf(EPS)
DOUBLE = torch.float64
VOID = 255
Batch = tuple[torch.Tensor, torch.Tensor]


class Task(NamedTuple):
    """net: makes one, in float64. labels: (x, y) -> what the objective takes. loss: plain PyTorch,
    to one scalar, the mean over the samples."""

    objective: fastadv.Objective
    net: Callable[[], nn.Module]
    labels: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

    def batches(self, count: int, **more: object) -> list[Batch]:
        return [(x, self.labels(x, y)) for x, y in batches(count, dtype=DOUBLE, **more)]


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().to(DOUBLE).train()


def _pixels_net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, 3, 1))


def _pixel_labels(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """(B, 8, 8) in uint8: dark, bright and brightest; a column and most of the first sample do not
    count."""
    labels = (x[:, 0] > 0.2).to(torch.uint8) + (x[:, 0] > 0.6).to(torch.uint8)
    labels[:, :, 3] = VOID
    labels[0, 1:] = VOID
    return labels


def _pixels_loss(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    parts = [
        F.cross_entropy(pixels[None], labels[None].long(), ignore_index=VOID)
        for pixels, labels in zip(output, y, strict=True)
    ]
    return torch.stack(parts).mean()


def _one_logit(width: int) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(216, width))
        return net if width > 1 else nn.Sequential(net, nn.Flatten(0))

    return make


def _parities(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """(B, 3): bits of the label, in bool."""
    return torch.stack([(y >> bit) % 2 == 1 for bit in range(3)], 1)


def _bce(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.binary_cross_entropy_with_logits(output, y.to(output.dtype))


TASKS = {
    "segmentation": Task(
        objectives.segmentation(ignore_index=VOID), _pixels_net, _pixel_labels, _pixels_loss
    ),
    "binary": Task(  # (B,) outputs and (B,) labels in float32
        objectives.binary(), _one_logit(1), lambda x, y: (y > 2).float(), _bce
    ),
    "multilabel": Task(objectives.multilabel(), _one_logit(3), _parities, _bce),
}


class Sequences(nn.Module):
    """(B, T, 4) to (B, 3) logits: an LSTM and a layer on its last output."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 8, batch_first=True)
        self.last = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.lstm(x)[0][:, -1])


def sequences(count: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(count, 12, 5, 4, dtype=DOUBLE, generator=generator)
    return list(zip(x, torch.randint(3, (count, 12), generator=generator), strict=True))


Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def plain_pgd(net, x, y, loss: Loss, noise, *, steps, step_size, bounds, clamp=True):
    """PGD as a user writes it: x + noise, then signed steps up the loss in the box; detached."""
    low, high = bounds
    x_adv = (x + noise).clamp(low, high) if clamp else x + noise
    for _ in range(steps):
        leaf = x_adv.detach().requires_grad_()
        (grad,) = torch.autograd.grad(loss(net(leaf), y), leaf)
        x_adv = x_adv.detach() + step_size * grad.sign()
        x_adv = torch.min(torch.max(x_adv, x - EPS), x + EPS).clamp(low, high)
    return x_adv.detach()


def plain_free(net, optimizer, x, y, loss: Loss, delta, *, replays) -> torch.Tensor:
    """Free-AT as a user writes it; the new delta."""
    for _ in range(replays):
        delta = delta.detach().requires_grad_()
        value = loss(net(x + delta), y)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        delta = (delta + EPS * delta.grad.sign()).clamp(-EPS, EPS)
        delta = ((x + delta).clamp(0, 1) - x).detach()
    return delta


def trained_both(step, net, data: list[Batch], loss: Loss, **plain: object):
    """The network after our steps and after the plain loop, both from the same starts."""
    ours, theirs = net, copy.deepcopy(net)
    optimizers = [torch.optim.SGD(n.parameters(), lr=0.2, momentum=0.9) for n in (ours, theirs)]
    for i, (x, y) in enumerate(data):
        noise = uniform(x, EPS, seed=i)
        clamp = plain.get("clamp", True)
        start = (x + noise).clamp(*plain["bounds"]) if clamp else x + noise
        train_batch(step, ours, optimizers[0], x, y, x_init=start)
        x_adv = plain_pgd(theirs, x, y, loss, noise, **plain)
        optimizers[1].zero_grad()
        loss(theirs(x_adv), y).backward()
        optimizers[1].step()
    return ours, theirs


def plain_objective() -> fastadv.Objective:
    """Cross-entropy, as one's own objective: what the named loss must agree with."""
    return fastadv.Objective(lambda z, y: F.cross_entropy(z, y, reduction="none"), name="ce")


def small_net() -> nn.Module:
    return conv_net(dtype=DOUBLE, bn=True)
