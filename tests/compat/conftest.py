"""Networks and images of the compatibility tests: small, trained, and different in what matters."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from fastadv.data.digits import load_digits
from fastadv.models import digits_net, mnist_net


def _batchnorm_net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Flatten(), nn.Linear(16 * 4 * 4, 10),
        )  # fmt: skip


def _trained(net: nn.Module, x: torch.Tensor, y: torch.Tensor, steps: int) -> nn.Module:
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for step in range(steps):
        rows = torch.arange(step * 64, step * 64 + 64) % len(x)
        loss = functional.cross_entropy(net(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    net.zero_grad()
    return net.eval()


def images_for(name: str, x: torch.Tensor) -> torch.Tensor:
    if name == "mnist":
        return functional.interpolate(x, size=28, mode="nearest")
    return x.repeat(1, 3, 1, 1) if name == "batchnorm" else x


@pytest.fixture(scope="session")
def _trained_nets() -> dict[str, nn.Module]:
    x, y = load_digits("train")
    nets = {"digits": digits_net(), "mnist": mnist_net(), "batchnorm": _batchnorm_net()}
    steps = {"digits": 150, "mnist": 30, "batchnorm": 100}
    return {name: _trained(net, images_for(name, x), y, steps[name]) for name, net in nets.items()}


@pytest.fixture
def nets(_trained_nets):
    return copy.deepcopy(_trained_nets)


@pytest.fixture
def net(nets) -> nn.Module:
    return nets["digits"]


@pytest.fixture(scope="session")
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    x, y = load_digits("test")
    return x[:32], y[:32]


@pytest.fixture
def inputs_for(nets, digits):
    """(model, images, labels) by the model's name, in a dtype."""

    def make(name: str, dtype: torch.dtype) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
        x, y = digits
        return nets[name].to(dtype), images_for(name, x).to(dtype), y

    return make
