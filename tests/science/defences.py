"""Defences that hide their gradient: a quantiser, and randomness in front of a net."""

import torch
import torch.nn.functional as F
from torch import nn


class Quantised(nn.Module):
    """net(round(x * 3) / 3): four levels of grey, whose gradient is zero everywhere."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(four_levels(x))


def four_levels(x: torch.Tensor) -> torch.Tensor:
    return (x * 3).round() / 3


class Randomised(nn.Module):
    """net on x shifted by -1, 0 or 1 pixels each way and with each pixel dropped at 1/2.

    Both are drawn for each image and pass from torch's global generator of the device.
    """

    def __init__(self, net: nn.Module, *, shift: int = 1, drop: float = 0.5) -> None:
        super().__init__()
        self.net = net
        self.shift = shift
        self.drop = drop

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, _, height, width = x.shape
        corner = torch.randint(0, 2 * self.shift + 1, (2, batch, 1), device=x.device)
        rows = corner[0] + torch.arange(height, device=x.device)
        columns = corner[1] + torch.arange(width, device=x.device)
        image = torch.arange(batch, device=x.device)[:, None, None]
        padded = F.pad(x, (self.shift,) * 4)
        shifted = padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
        return self.net(shifted * (torch.rand_like(shifted) >= self.drop))
