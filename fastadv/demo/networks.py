"""The two networks of the demo: one trained on clean digits, one by Fast-AT."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from fastadv.attacks import pgd
from fastadv.models import digits_net
from fastadv.threat_model import Linf

# PGD-50-10 leaves the standard network 0.0 to 1.9 % and the Fast-AT network 62.5 to 66.9 % of the
# 360 held-out digits (seeds 0 to 5, 2 CPU cores); the grey levels of the digits are 1/16 apart
EPS = 0.18
_STANDARD_EPOCHS = 30
_FAST_EPOCHS = 40
_WARM_UP_EPOCHS = 5  # eps grows linearly from 0
_BATCH = 64
_LEARNING_RATE = 3e-3
_FAST_STEP = 1.25  # in units of eps; Wong et al. 2020, section 5
# Fast-AT only: without it the robust accuracy is about 5 points lower
_LABEL_SMOOTHING = 0.2


def train_standard(x: torch.Tensor, y: torch.Tensor, *, seed: int) -> nn.Module:
    """A digits network trained on clean samples."""
    net = digits_net(seed)
    return _train(net, x, y, _STANDARD_EPOCHS, seed, craft=None, label_smoothing=0.0)


def train_fast(x: torch.Tensor, y: torch.Tensor, *, seed: int) -> nn.Module:
    """A digits network trained by Fast-AT at `EPS`: FGSM from a random start, step 1.25 eps.

    Unlike the authors' script: Adam, label smoothing and a linear warm-up of eps.
    Source: Wong, Rice and Kolter 2020, arXiv:2001.03994.
    """
    net = digits_net(seed)
    batches_an_epoch = len(x) // _BATCH

    def craft(x: torch.Tensor, y: torch.Tensor, step: int) -> torch.Tensor:
        eps = EPS * min(1.0, (step + 1) / (_WARM_UP_EPOCHS * batches_an_epoch))
        attack = pgd(Linf(eps), steps=1, step_size=_FAST_STEP * eps, keep="last", seed=seed)
        # ids that never repeat: a fresh random start in every step
        return attack(net, x, y, sample_ids=torch.arange(len(x)) + step * _BATCH)

    return _train(net, x, y, _FAST_EPOCHS, seed, craft=craft, label_smoothing=_LABEL_SMOOTHING)


def _train(
    net: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    epochs: int,
    seed: int,
    *,
    craft: Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor] | None,
    label_smoothing: float,
) -> nn.Module:
    """Adam; the learning rate falls linearly to 0 over the second half."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(net.parameters(), lr=_LEARNING_RATE)
    batches_an_epoch = len(x) // _BATCH
    total = epochs * batches_an_epoch
    for step in range(total):
        if step % batches_an_epoch == 0:
            order = torch.randperm(len(x), generator=generator)
        first = step % batches_an_epoch * _BATCH
        batch = order[first : first + _BATCH]
        x_batch, y_batch = x[batch], y[batch]
        if craft is not None:
            x_batch = craft(x_batch, y_batch, step)
        for group in optimizer.param_groups:
            group["lr"] = _LEARNING_RATE * min(1.0, 2 * (total - step) / total)
        loss = F.cross_entropy(net(x_batch), y_batch, label_smoothing=label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()
