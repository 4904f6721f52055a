"""Residual networks of pre-activation blocks, and the 18-layer one of adversarial training."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from fastadv.models.arguments import require_positive
from fastadv.models.initialisation import build_seeded


class PreActBlock(nn.Module):
    """conv2(dropout(relu(bn2(conv1(h))))) + shortcut, h = relu(bn1(x)): two 3x3 convolutions.

    x: (B, inputs, H, W), to (B, outputs, H / stride, W / stride). The shortcut is x where shapes
    agree, and a 1x1 convolution of h where they do not. No convolution has a bias.

    He et al. 2016, Identity Mappings in Deep Residual Networks, arXiv:1603.05027.
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int, dropout: float = 0.0):
        super().__init__()
        self.bn1: nn.BatchNorm2d = nn.BatchNorm2d(inputs)
        self.conv1: nn.Conv2d = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn2: nn.BatchNorm2d = nn.BatchNorm2d(outputs)
        self.dropout: nn.Dropout = nn.Dropout(dropout)
        self.conv2: nn.Conv2d = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut: nn.Sequential | None = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = F.relu(self.bn1(x))
        kept = x if self.shortcut is None else self.shortcut(hidden)
        hidden = F.relu(self.bn2(self.conv1(hidden)))
        return self.conv2(self.dropout(hidden)) + kept


class PreActResNet(nn.Module):
    """3x3 stem, groups of `PreActBlock`, BatchNorm and ReLU, mean, linear: (B, 3, H, W) to logits.

    stem: channels of the stem. channels: those of each group, whose first block halves H and W,
    but for the first group. blocks: blocks in a group. dropout: within each block. Pixels in
    [0, 1] as they are: the BatchNorms take the mean out; for a checkpoint trained on normalised
    pixels, wrap the network in `fastadv.Normalized`.
    """

    def __init__(
        self,
        *,
        stem: int,
        channels: Sequence[int],
        blocks: int,
        classes: int = 10,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.conv1: nn.Conv2d = nn.Conv2d(3, stem, 3, padding=1, bias=False)
        inputs = stem
        groups: list[str] = []
        for index, outputs in enumerate(channels):
            group = nn.Sequential()
            for block in range(blocks):
                stride = 2 if block == 0 and index > 0 else 1
                group.append(PreActBlock(inputs, outputs, stride=stride, dropout=dropout))
                inputs = outputs
            groups.append(f"layer{index + 1}")
            self.add_module(groups[-1], group)
        self.groups: tuple[str, ...] = tuple(groups)
        self.bn: nn.BatchNorm2d = nn.BatchNorm2d(inputs)
        self.linear: nn.Linear = nn.Linear(inputs, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.conv1(x)
        for group in self.groups:
            hidden = self.get_submodule(group)(hidden)
        return self.linear(F.relu(self.bn(hidden)).mean((2, 3)))


def preact_resnet18(seed: int = 0, *, classes: int = 10) -> PreActResNet:
    """A freshly initialised PreActResNet-18 on the CPU, a pure function of its arguments.

    (B, 3, 32, 32) pixels in [0, 1] to (B, classes) logits; 11,172,170 parameters at 10 classes.
    The variant of the Fast-AT code: BatchNorm and ReLU also before the mean, and its names, so
    that the keys of its checkpoints fit. Initialised as torch does by default, like that code, to
    which published accuracies refer. The global generators are neither read nor written. Raises
    ValueError if classes is below 1.

    >>> preact_resnet18(seed=1).eval()(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])

    Wong, Rice and Kolter 2020, Fast is better than free, arXiv:2001.03994, section 5.2; the blocks
    of He et al. 2016, arXiv:1603.05027.
    """
    require_positive(classes=classes)
    channels = (64, 128, 256, 512)
    return build_seeded(
        lambda: PreActResNet(stem=64, channels=channels, blocks=2, classes=classes), seed=seed
    )
