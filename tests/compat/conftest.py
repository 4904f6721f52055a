"""Networks and images of the compatibility tests: small, trained, and different in what matters."""

import copy
import functools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastadv.data.digits import load_digits
from fastadv.models import digits_net, mnist_net

NORMALIZATION = {
    "digits": ([0.3], [0.35]),
    "mnist": ([0.1307], [0.3081]),
    "batchnorm": ([0.4914, 0.4822, 0.4465], [0.247, 0.2435, 0.2616]),
}


def _batchnorm_net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16 * 4 * 4, 10),
        )


def _trained(net: nn.Module, x: torch.Tensor, y: torch.Tensor, steps: int) -> nn.Module:
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for step in range(steps):
        rows = torch.arange(step * 64, step * 64 + 64) % len(x)
        loss = F.cross_entropy(net(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    net.zero_grad()
    return net.eval()


def images_for(name: str, x: torch.Tensor) -> torch.Tensor:
    if name == "mnist":
        return F.interpolate(x, size=28, mode="nearest")
    return x.repeat(1, 3, 1, 1) if name == "batchnorm" else x


def normalised(x: torch.Tensor, name: str) -> torch.Tensor:
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in NORMALIZATION[name])
    return (x - mean) / std


@functools.cache
def _net(name: str, is_normalised: bool) -> nn.Module:
    """Trained on pixels or on normalised images: elsewhere it would be sure of everything, and
    the gradient of a probability of 1 is rounding noise."""
    x, y = load_digits("train")
    x = images_for(name, x)
    net = {"digits": digits_net, "mnist": mnist_net, "batchnorm": _batchnorm_net}[name]()
    return _trained(net, normalised(x, name) if is_normalised else x, y, steps=30)


@pytest.fixture
def nets() -> dict[str, nn.Module]:
    return {name: copy.deepcopy(_net(name, False)) for name in NORMALIZATION}


@pytest.fixture
def net(nets) -> nn.Module:
    return nets["digits"]


@pytest.fixture(scope="session")
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    x, y = load_digits("test")
    return x[:32], y[:32]


@pytest.fixture
def inputs_for(digits):
    """(model, images in [0, 1], labels, (mean, std)) by the model's name, in a dtype."""

    def make(
        name: str, dtype: torch.dtype, is_normalised: bool = False
    ) -> tuple[nn.Module, torch.Tensor, torch.Tensor, tuple]:
        x, y = digits
        net = copy.deepcopy(_net(name, is_normalised))
        return net.to(dtype), images_for(name, x).to(dtype), y, NORMALIZATION[name]

    return make


@pytest.fixture
def flat() -> torch.Tensor:
    return torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.01, 0.99, 0.5, 0.5]]).view(2, 1, 2, 2)
