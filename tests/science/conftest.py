"""Networks for real data, those of MNIST trained once a session, and where optional data lie."""

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from defences import Randomised
from torch import nn

from fastadv.data import load_digits, load_mnist, to_unit_interval
from fastadv.models import digits_net, mnist_net

_SHARED = Path(__file__).resolve().parents[3] / "shared"
_DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
_TRAINING_IMAGES = 20_000  # a third of MNIST: 97 % clean in seconds on one core


class Trained(NamedTuple):
    """A net in eval mode with test images that it never saw; net: (B, 1, H, W) to (B, 10)."""

    net: nn.Module
    x: torch.Tensor
    y: torch.Tensor


def _train(
    net: nn.Module, x: torch.Tensor, y: torch.Tensor, *, epochs: int, learning_rate: float
) -> nn.Module:
    """Adam on cross-entropy in batches of 64, seeded; the global generators are put back."""
    net = net.to(_DEVICE).train()
    x, y = x.to(_DEVICE), y.to(_DEVICE)
    optimizer = torch.optim.Adam(net.parameters(), lr=learning_rate)
    order = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[_DEVICE] if _DEVICE.type == "cuda" else []):
        torch.manual_seed(0)
        for _ in range(epochs):
            for rows in torch.randperm(len(x), generator=order).split(64):
                loss = F.cross_entropy(net(x[rows]), y[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return net.eval()


@pytest.fixture(scope="session")
def mnist() -> Callable[[str], tuple[torch.Tensor, torch.Tensor]]:
    if not (_SHARED / "data" / "mnist").is_dir():
        pytest.skip("needs the optional real MNIST in ../shared/data/mnist")

    def load(split: str) -> tuple[torch.Tensor, torch.Tensor]:
        images, y = load_mnist(_SHARED / "data" / "mnist", split)
        return to_unit_interval(images), y

    return load


@pytest.fixture(scope="session")
def trained_mnist(mnist) -> Trained:
    """`mnist_net` after two epochs, with the 10,000 test images: 97.3 % clean."""
    return _trained_on_mnist(mnist_net(), mnist)


@pytest.fixture(scope="session")
def randomised_mnist(mnist) -> Trained:
    """`mnist_net` trained behind the random shift and pixel drop that also defend it."""
    return _trained_on_mnist(Randomised(mnist_net()), mnist)


def _trained_on_mnist(net: nn.Module, mnist) -> Trained:
    x, y = mnist("train")
    net = _train(net, x[:_TRAINING_IMAGES], y[:_TRAINING_IMAGES], epochs=2, learning_rate=2e-3)
    x, y = mnist("test")
    return Trained(net, x.to(_DEVICE), y.to(_DEVICE))


@pytest.fixture(scope="session")
def trained_digits() -> Trained:
    """The `digits_net` that comes trained, with the 360 test images: 97.5 % clean."""
    x, y = load_digits("test")
    net = digits_net(weights="standard").to(_DEVICE)
    return Trained(net, x.to(_DEVICE), y.to(_DEVICE))


@pytest.fixture(scope="session")
def third_party() -> dict[str, Any]:
    """The functions of ../shared/models/load_models.py."""
    script = _SHARED / "models" / "load_models.py"
    if not script.is_file():
        pytest.skip("needs the optional third-party models in ../shared/models")
    if not (_SHARED / "data").is_dir():
        pytest.skip("needs the optional real data in ../shared/data")
    return runpy.run_path(str(script))  # unlike import, writes no bytecode
