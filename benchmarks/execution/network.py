"""A small residual network with BatchNorm, trained for seconds: for folding and compile."""

from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.autoattack.cases import EnsembleCase, load
from benchmarks.harness.networks import Problem
from fastadv.models.initialisation import build_seeded
from fastadv.models.preact_resnet import PreActResNet

_SOURCE = EnsembleCase("cifar_sgd_8px", "0.5/255", 150)  # whose samples these are
_TRAINED_ON = 2048
_EPOCHS = 4
_BATCH = 64
_LEARNING_RATE = 3e-3


def small_preact_resnet(folder: Path, samples: int, *, trained_on: int = _TRAINED_ON) -> Problem:
    """The first `samples` CIFAR-10 test points, and a network trained on the `trained_on` after
    them: Adam, cross-entropy, 4 epochs, no augmentation. About a third of the points are right."""
    source = load(_SOURCE, folder, samples + trained_on)
    x, y = source.x[samples:], source.y[samples:]
    model = build_seeded(
        lambda: PreActResNet(stem=16, channels=(16, 32, 64), blocks=1), seed=0, initialisation="he"
    ).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=_LEARNING_RATE)
    generator = torch.Generator().manual_seed(0)
    for _ in range(_EPOCHS):
        for rows in torch.randperm(len(x), generator=generator).split(_BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    optimizer.zero_grad()
    return Problem(
        "small_preact_resnet", source.data, model.eval(), source.x[:samples], source.y[:samples]
    )
