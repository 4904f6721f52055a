"""The network that the golden trajectories attack, rebuilt from its stored arrays, and its data."""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

CLASSES = 6
# Not square, so that exchanged axes show; the last column lies outside the 5 x 5 windows in which
# Square starts. 12 would be rounder, but the authors' windows do not fit: 6 of 2 from pixel 1 on.
SHAPE = (3, 10, 11)


class TinyModel(nn.Module):
    """conv(3 -> 6, 3x3, stride 2), ReLU, conv(6 -> 6, 3x3), ReLU, linear(36 -> 6).

    weights: name -> array with conv1.weight, conv1.bias, conv2.*, linear.*; other names are
    ignored, so that the whole of autoattack_model.npz can be passed.
    """

    def __init__(self, weights: Mapping[str, np.ndarray] | None = None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, stride=2)
        self.conv2 = nn.Conv2d(6, 6, 3)
        self.linear = nn.Linear(36, CLASSES)
        if weights is not None:
            self.load_state_dict({n: torch.from_numpy(weights[n]) for n in self.state_dict()})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = F.relu(self.conv2(F.relu(self.conv1(x))))
        return self.linear(hidden.flatten(1))


def structured_data(count: int, *, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`count` images in [0, 1], multiples of 1/255, of CLASSES smooth patterns; and their labels.

    An image is its class's 4x4 pattern enlarged, with a random contrast, plus noise; about one
    pixel in eight is clipped to exactly 0 or 1, where the projections have their corner cases.
    """
    patterns = torch.randn(CLASSES, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    patterns = F.interpolate(patterns, SHAPE[1:], mode="bilinear", align_corners=True)
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(CLASSES, (count,), generator=generator)
    contrast = 0.15 + 0.3 * torch.rand(count, 1, 1, 1, generator=generator)
    noise = 0.25 * torch.randn(count, *SHAPE, generator=generator)
    x = (0.5 + contrast * patterns[y] + noise).clamp(0, 1)
    return torch.round(x * 255) / 255, y


def train(*, seed: int, steps: int = 400) -> TinyModel:
    """A TinyModel trained by AdamW on fresh batches, its logits then divided by 4.

    Below 2 in size, they are the same within 1e-6 for any order of summation.
    """
    torch.manual_seed(seed)
    model = TinyModel()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.3)
    for step in range(steps):
        x, y = structured_data(128, seed=1000 + step)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y, label_smoothing=0.1).backward()
        optimizer.step()
    with torch.no_grad():
        model.linear.weight /= 4
        model.linear.bias /= 4
    return model.requires_grad_(False).eval()
