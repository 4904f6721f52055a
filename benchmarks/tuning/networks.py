"""The networks that are tuned for: six kinds, the same from run to run."""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.harness import networks
from benchmarks.harness.networks import Problem
from fastadv.data import load_digits
from fastadv.models import fast_cifar_net, preact_resnet18
from fastadv.models.initialisation import build_seeded
from fastadv.models.preact_resnet import PreActResNet

_NOISE = "uniform noise, labelled by the model"
_CPU = torch.device("cpu")


class SmallViT(nn.Module):
    """(B, 3, 32, 32) to (B, 10) logits: 64 patches of 4 x 4, pre-norm attention blocks, their mean.

    Of the form of Dosovitskiy et al. 2021, arXiv:2010.11929, without a class token.
    """

    def __init__(self, width: int = 64, depth: int = 3, heads: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, stride=4)
        self.position = nn.Parameter(torch.zeros(1, 64, width))
        self.blocks = nn.Sequential(*(_Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.blocks(tokens)).mean(1))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mixed, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        n, count, width = tokens.shape
        parts = self.mixed(self.first(tokens)).view(n, count, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(query, key, value)
        tokens = tokens + self.out(seen.transpose(1, 2).reshape(n, count, width))
        return tokens + self.wide(self.second(tokens))


def digits(n: int) -> Problem:
    """digits_net, trained as in `benchmarks.attacks`; digits that it was trained on, too, as only
    360 were held out."""
    net = networks.digits(1, _CPU)
    x, y = (torch.cat(parts) for parts in zip(load_digits("test"), load_digits("train")))  # noqa: B905
    return Problem(net.name, "UCI digits, test and train", net.model, x[:n], y[:n])


def mnist(n: int, folder: Path | None = None) -> Problem:
    return networks.mnist(n, _CPU, folder)


def batchnorm(n: int) -> Problem:
    return networks.batchnorm(n, _CPU)


def fast_cifar(n: int) -> Problem:
    return _of_noise("fast_cifar_net(width=16), random weights", fast_cifar_net(width=16), n)


def preact18(n: int) -> Problem:
    return _of_noise("PreActResNet-18, random weights", preact_resnet18(), n)


def small_preact(n: int) -> Problem:
    model = build_seeded(
        lambda: PreActResNet(stem=16, channels=(16, 32, 64), blocks=1), seed=0, initialisation="he"
    )
    return _of_noise("PreActResNet(16, 32, 64), random weights", model, n)


def small_vit(n: int) -> Problem:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = SmallViT()
    return _of_noise("SmallViT, random weights", model, n)


def _of_noise(name: str, model: nn.Module, n: int) -> Problem:
    """Random weights: BatchNorms have the statistics of noise, and no logit is far from the
    others, so that predictions of noise differ."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(max(n, 64), 3, 32, 32, generator=generator)
    with torch.no_grad():
        norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = 1.0  # statistics of this batch alone
        model.train()(x[:64])
        model.eval()
        for norm in norms:
            norm.momentum = 0.1
        last = [layer for layer in model.modules() if isinstance(layer, nn.Linear)][-1]
        logits = model(x[:64])
        scale = 3 / float(logits.std(0).mean())
        last.weight *= scale
        last.bias.copy_(-(model(x[:64]) - last.bias).mean(0))
        x = x[:n].contiguous()
        return Problem(name, _NOISE, model, x, model(x).argmax(1))


NETWORKS: dict[str, Callable[[int], Problem]] = {
    "digits_net": digits,
    "mnist_net": mnist,
    "fast_cifar_net": fast_cifar,
    "PreActResNet-18": preact18,
    "BatchNormNet": batchnorm,
    "SmallViT": small_vit,
}
