"""Nine small networks whose gradients are masked, in three ways, trained on the embedded digits.

Every one is a perceptron with two hidden layers, trained for seconds and kept in a folder that git
ignores. Ways: "activations" that are quantised or saturate; a large "scale" of the logits, on whose
loss FGSM crafts the training samples; a "penalty" on the gradient of the loss with respect to x.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from fastadv.data import load_digits

_BATCH = 64
_LEARNING_RATE = 3e-3
_OVERSHOOT = 1.25  # of FGSM's step, in eps


class Stairs(nn.Module):
    """Half of the units rounded to `levels` steps in [0, 1], straight through in training."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        smooth, other = h.clamp(0, 1).chunk(2, dim=1)
        rounded = (smooth * self.levels).round() / self.levels
        if self.training:
            rounded = smooth + (rounded - smooth).detach()
        return torch.cat([rounded, other], 1)


class Saturating(nn.Module):
    """tanh(gain h)."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain = gain

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.gain * h)


class Sine(nn.Module):
    """sin(gain h): small gradients at a point say little of those around it."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain = gain

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return torch.sin(self.gain * h)


class Scaled(nn.Module):
    """Logits times `scale`."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.scale * z


@dataclass(frozen=True)
class Masked:
    """A network: how it is made and trained, and the L-infinity radius it is attacked at.

    crafted: FGSM's radius in training, 0 for none. penalty: of the mean L1 norm of the gradient of
    the cross-entropy with respect to x.
    """

    name: str
    way: str
    eps: float
    seed: int
    activation: Callable[[], nn.Module]
    width: int = 64
    scale: float = 1.0
    crafted: float = 0.0
    penalty: float = 0.0
    epochs: int = 20

    def trained(self, folder: Path) -> nn.Module:
        """The network in eval mode: from `folder`, else trained and kept there."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = self._fresh()
        told = f"{model!r} {self.activation()!r} {vars(self.activation())} {self._told()}"
        path = folder / f"{self.name}-{hashlib.sha256(told.encode()).hexdigest()[:12]}.pt"
        if path.exists():
            model.load_state_dict(torch.load(path, weights_only=True))
        else:
            self._train(model)
            folder.mkdir(parents=True, exist_ok=True)
            torch.save(model.state_dict(), path)
        return model.eval().requires_grad_(False)

    def _told(self) -> tuple[object, ...]:
        return self.seed, self.width, self.scale, self.crafted, self.penalty, self.epochs

    def _fresh(self) -> nn.Module:
        return nn.Sequential(
            nn.Flatten(),
            nn.Linear(64, self.width),
            self.activation(),
            nn.Linear(self.width, self.width),
            self.activation(),
            nn.Linear(self.width, 10),
            Scaled(self.scale),
        )

    def _train(self, model: nn.Module) -> None:
        images, digits = load_digits("train")
        generator = torch.Generator().manual_seed(self.seed)
        optimizer = torch.optim.Adam(model.parameters(), lr=_LEARNING_RATE)
        model.train()
        for _ in range(self.epochs):
            for rows in torch.randperm(len(images), generator=generator).split(_BATCH):
                x, y = images[rows], digits[rows]
                if self.crafted:
                    x = self._fgsm(model, x, y, generator)
                loss = F.cross_entropy(model(x), y)
                if self.penalty:
                    loss = loss + self.penalty * _gradient(model, x, y).abs().sum() / len(x)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    def _fgsm(
        self, model: nn.Module, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        start = (2 * torch.rand(x.shape, generator=generator) - 1) * self.crafted
        gradient = _gradient(model, (x + start).clamp(0, 1), y).detach()
        step = _OVERSHOOT * self.crafted * gradient.sign()
        moved = (x + start).clamp(0, 1) + step
        return (x + (moved - x).clamp(-self.crafted, self.crafted)).clamp(0, 1)


def _gradient(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Of the summed cross-entropy, differentiable."""
    leaf = x.detach().requires_grad_()
    loss = F.cross_entropy(model(leaf), y, reduction="sum")
    return torch.autograd.grad(loss, leaf, create_graph=True)[0]


NETWORKS = (
    Masked("tanh-20", "activations", 0.15, 0, lambda: Saturating(20.0), crafted=0.15),
    Masked("tanh-8", "activations", 0.15, 1, lambda: Saturating(8.0), crafted=0.15),
    Masked("stairs-2", "activations", 0.1, 2, lambda: Stairs(2), crafted=0.1),
    Masked("scale-1000", "scale", 0.15, 0, nn.ReLU, scale=1000.0, crafted=0.15),
    Masked("scale-3000", "scale", 0.15, 1, nn.ReLU, scale=3000.0, crafted=0.15),
    Masked("scale-1000-wide", "scale", 0.15, 2, nn.ReLU, 96, scale=1000.0, crafted=0.15),
    Masked("penalty-tanh-20", "penalty", 0.08, 0, lambda: Saturating(20.0), penalty=0.01),
    Masked("penalty-tanh-10", "penalty", 0.12, 1, lambda: Saturating(10.0), penalty=0.01),
    Masked("penalty-sine-5", "penalty", 0.15, 2, lambda: Sine(5.0), 96, penalty=0.01),
)
JUDGED = "penalty"  # the way that nothing is tuned on
