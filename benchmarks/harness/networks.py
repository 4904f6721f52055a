"""The problems that attacks are timed on: a small network in eval mode, samples and labels."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from fastadv.data import load_digits, load_mnist, to_unit_interval
from fastadv.models import digits_net, mnist_net

_BATCH = 64


@dataclass(frozen=True)
class Problem:
    """model: eval mode, (n, ...) to (n, C) logits. x: (n, ...) in [0, 1]. y: (n,) labels.

    name and data are what a row says of model and samples.
    """

    name: str
    data: str
    model: nn.Module
    x: torch.Tensor
    y: torch.Tensor


def digits(n: int, device: torch.device) -> Problem:
    """digits_net, trained here for 8 epochs on the embedded digits; the first n test samples."""
    model = digits_net(seed=0)
    _train(model, *load_digits("train"), epochs=8)
    x, y = load_digits("test")
    return _problem("digits_net, trained", "UCI digits, test", model, x[:n], y[:n], device)


def mnist(n: int, device: torch.device, folder: str | Path | None) -> Problem:
    """mnist_net; with the folder of MNIST trained on 12,800 images, else random on random x.

    On random x the labels are the model's own predictions, so that there is something to attack.
    """
    model = mnist_net(seed=0)
    if folder is None:
        x = torch.rand(n, 1, 28, 28, generator=torch.Generator().manual_seed(0))
        return _problem("mnist_net, random weights", _SYNTHETIC, model, x, None, device)
    images, labels = load_mnist(folder, "train")
    _train(model, to_unit_interval(images[:12800]), labels[:12800], epochs=2)
    images, labels = load_mnist(folder, "test")
    x = to_unit_interval(images[:n])
    return _problem("mnist_net, trained", "MNIST, test", model, x, labels[:n], device)


def batchnorm(n: int, device: torch.device) -> Problem:
    """A conv net with BatchNorm, random weights, at (n, 3, 32, 32); labels: its predictions."""
    generator = torch.Generator().manual_seed(0)
    model = _initialised(BatchNormNet(), generator)
    x = torch.rand(max(n, 64), 3, 32, 32, generator=generator)
    with torch.no_grad():
        model.train()(x)  # running statistics other than 0 and 1
    return _problem(
        "BatchNormNet, random weights", _SYNTHETIC, model, x[:n].contiguous(), None, device
    )


class BatchNormNet(nn.Sequential):
    """Three Conv-BatchNorm-ReLU blocks, average pool and a linear layer: 24,346 parameters."""

    def __init__(self) -> None:
        super().__init__(
            *_block(3, 16, stride=1),
            *_block(16, 32, stride=2),
            *_block(32, 64, stride=2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(64, 10),
        )


_SYNTHETIC = "uniform noise, labelled by the model"


def _block(channels: int, width: int, *, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(width), nn.ReLU()]


def _initialised(model: nn.Module, generator: torch.Generator) -> nn.Module:
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                bound = layer.weight[0].numel() ** -0.5
                layer.weight.uniform_(-bound, bound, generator=generator)
                if layer.bias is not None:
                    layer.bias.zero_()
    return model


def _train(model: nn.Module, x: torch.Tensor, y: torch.Tensor, *, epochs: int) -> None:
    """Adam on the cross-entropy, half of each batch moved by FGSM; a fixed order of samples."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(_BATCH):
            batch, labels = x[rows], y[rows]
            half = len(batch) // 2
            moved = batch[:half].clone().requires_grad_()
            (grad,) = torch.autograd.grad(F.cross_entropy(model(moved), labels[:half]), moved)
            moved = (moved.detach() + 0.1 * grad.sign()).clamp(0, 1)
            loss = F.cross_entropy(model(torch.cat([moved, batch[half:]])), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def _problem(
    name: str,
    data: str,
    model: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor | None,
    device: torch.device,
) -> Problem:
    model, x = model.to(device).eval(), x.to(device)
    with torch.no_grad():
        labels = model(x).argmax(1) if y is None else y.to(device)
    return Problem(name, data, model, x, labels)


def accuracy(problem: Problem, x: torch.Tensor) -> float:
    with torch.no_grad():
        return float((problem.model(x).argmax(1) == problem.y).double().mean())


Build = Callable[[int, torch.device], Problem]
