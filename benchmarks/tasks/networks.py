"""Small networks of several kinds, each trained for seconds on the embedded digits."""

from collections.abc import Callable

import torch
from torch import nn

_BATCH = 64
_LEARNING_RATE = 3e-3

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def trained(
    build: Callable[[], nn.Module], x: torch.Tensor, y: torch.Tensor, loss: Loss, *, epochs: int
) -> nn.Module:
    """What `build` makes, with weights drawn by seed 0, after Adam on `loss`; in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build()
    optimizer = torch.optim.Adam(model.parameters(), lr=_LEARNING_RATE)
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(_BATCH):
            optimizer.zero_grad()
            loss(model(x[rows]), y[rows]).backward()
            optimizer.step()
    optimizer.zero_grad()
    return model.eval().requires_grad_(False)


def perceptron(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(inputs, 64),
        nn.ReLU(),
        nn.Linear(64, 64),
        nn.ReLU(),
        nn.Linear(64, outputs),
    )


def pixel_classes(classes: int) -> nn.Module:
    """(B, 1, H, W) to (B, classes, H, W): three convolutions that see 11 x 11 pixels, and one."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 5, padding=2),
        nn.ReLU(),
        nn.Conv2d(16, 16, 5, padding=2),
        nn.ReLU(),
        nn.Conv2d(16, classes, 1),
    )


class Rows(nn.Module):
    """An LSTM that reads an image row by row, (B, T, F), and names its class at the end."""

    def __init__(self, features: int, classes: int, *, width: int = 32) -> None:
        super().__init__()
        self.lstm = nn.LSTM(features, width, batch_first=True)
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        read, _ = self.lstm(x)
        return self.head(read[:, -1])


class Tokens(nn.Module):
    """A table of embeddings, and what reads the embedded tokens: (B, T) integers to logits."""

    def __init__(self, tokens: int, length: int, classes: int, *, width: int = 4) -> None:
        super().__init__()
        self.table = nn.Embedding(tokens, width)
        self.reader = perceptron(length * width, classes)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.reader(self.table(tokens))


class Scaled(nn.Module):
    """A perceptron of features in units of their own, which it divides by their ranges."""

    def __init__(self, ranges: torch.Tensor, classes: int) -> None:
        super().__init__()
        self.ranges = ranges
        self.inner = perceptron(len(ranges), classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x / self.ranges)
