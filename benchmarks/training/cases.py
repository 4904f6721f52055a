"""What training is timed on: method, network, data and optimizer of each case."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from fastadv.data import load_cifar10, load_digits, load_mnist, to_unit_interval
from fastadv.models import digits_net, fast_cifar_net, mnist_net
from fastadv.models.single_channel import SingleChannelConv2d

REPLAYS = 8
BETA = 6.0  # of TRADES


@dataclass(frozen=True)
class TrainingCase:
    """A method on a data set, with the settings of its authors' scripts; numbers in input units.

    method: "fast", "pgd", "trades" or "free" (`REPLAYS` replays). steps, step_size: of the attack.
    clamp_start: whether Fast-AT's start is clamped before the gradient. limit: training samples
    from the front, None for all.
    """

    name: str
    data: str
    method: str
    batch_size: int
    eps: float
    step_size: float
    steps: int
    optimizer: str
    rate: float
    clamp_start: bool = False
    limit: int | None = None

    @property
    def title(self) -> str:
        label = {
            "fast": "Fast-AT",
            "pgd": f"PGD-{self.steps}",
            "trades": f"TRADES-{self.steps}",
            "free": f"Free-AT, {REPLAYS} replays",
        }[self.method]
        subset = "" if self.limit is None else f", first {self.limit:,}"
        return f"{_TITLES[self.data]}{subset}: {label}"

    @property
    def optimizer_steps(self) -> int:
        """Of one minibatch."""
        return REPLAYS if self.method == "free" else 1


@dataclass(frozen=True)
class Split:
    """images (N, C, H, W) uint8 and labels (N,) to train on; x (M, C, H, W), y (M,) to attack."""

    images: torch.Tensor
    labels: torch.Tensor
    x: torch.Tensor
    y: torch.Tensor


_TITLES = {"digits": "digits", "mnist": "MNIST", "cifar10": "CIFAR-10"}
NETWORKS: dict[str, tuple[str, Callable[[int], nn.Module]]] = {
    "digits": ("digits_net", digits_net),
    "mnist": ("MnistNet", mnist_net),
    "cifar10": ("fast_cifar_net(width=16)", lambda seed: fast_cifar_net(seed, width=16)),
}
_ATTACK_STEP = {"digits": 0.01, "mnist": 0.01, "cifar10": 2 / 255}


def attack_step(case: TrainingCase) -> float:
    """The step size of the PGD that a trained network is attacked with."""
    return _ATTACK_STEP[case.data]


def _digits(method: str, steps: int, step_size: float) -> TrainingCase:
    name = f"digits-{method}"
    return TrainingCase(name, "digits", method, 64, 0.15, step_size, steps, "adam", 1e-3)


def _mnist(method: str, steps: int, step_size: float) -> TrainingCase:
    name = f"mnist-{method}"
    return TrainingCase(name, "mnist", method, 100, 0.3, step_size, steps, "adam", 1e-3)


def _cifar(method: str, step_size: float) -> TrainingCase:
    return TrainingCase(
        f"cifar10-{method}",
        "cifar10",
        method,
        128,
        8 / 255,
        step_size,
        1,
        "sgd",
        0.05,
        clamp_start=True,
        limit=5000,
    )


CASES = {
    case.name: case
    for case in (
        _mnist("fast", 1, 0.375),
        _mnist("pgd", 5, 0.075),
        _mnist("trades", 10, 0.075),
        _cifar("free", 8 / 255),
        _cifar("fast", 10 / 255),
        _digits("fast", 1, 0.1875),
        _digits("pgd", 5, 0.0375),
        _digits("trades", 10, 0.0375),
        _digits("free", 1, 0.15),
    )
}


def load(case: TrainingCase, folder: Path | None, *, test_samples: int) -> Split:
    """The case's data; the digits, rounded to 8 bits, are embedded and need no folder."""
    if case.data == "digits":
        x, labels = load_digits("train")
        test, y = load_digits("test")
        images = (x * 255).round().to(torch.uint8)
    elif folder is None:
        raise ValueError(f"{case.name} needs --data, the folder with the files of {case.data}")
    else:
        read = load_mnist if case.data == "mnist" else load_cifar10
        images, labels = read(folder, "train")
        test_images, y = read(folder, "test")
        test = to_unit_interval(test_images[:test_samples])
    count = case.limit
    return Split(images[:count].contiguous(), labels[:count], test[:test_samples], y[:test_samples])


def network(case: TrainingCase, *, seed: int = 0) -> nn.Module:
    """The case's network with fresh weights, in train mode, on the CPU."""
    return NETWORKS[case.data][1](seed).train()


def textbook_network(case: TrainingCase, *, seed: int = 0) -> nn.Module:
    """The same with the same weights, of torch's own layers, as the authors' scripts have it."""
    model = network(case, seed=seed)
    for name, layer in list(model.named_children()):
        if isinstance(layer, SingleChannelConv2d):
            size, stride, padding = layer.kernel_size[0], layer.stride[0], int(layer.padding[0])
            plain = nn.Conv2d(1, layer.out_channels, size, stride=stride, padding=padding)
            plain.load_state_dict(layer.state_dict())
            setattr(model, name, plain)
    return model
