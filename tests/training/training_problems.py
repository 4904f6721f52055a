"""Small networks and batches that every test of the training steps shares."""

from collections.abc import Callable, Iterator

import torch
from torch import nn

import fastadv
from fastadv import training

CLASSES = 5
SHAPE = (1, 8, 8)
THREAT = fastadv.Linf(0.1)


def conv_net(
    *, bn: bool = False, dtype: torch.dtype = torch.float32, seed: int = 0, dropout: float = 0.0
) -> nn.Sequential:
    """Convolutions only, (B, 1, 8, 8) to (B, 5) logits, in training mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d if bn else nn.Identity
        net = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            norm(8),
            nn.ReLU(),
            nn.Conv2d(8, 12, 3, stride=2, padding=1),
            norm(12),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Conv2d(12, CLASSES, 4),
            nn.Flatten(),
        )
    return net.to(dtype).train()


def batches(
    count: int, *, size: int = 16, dtype: torch.dtype = torch.float32, seed: int = 1
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Noisy images of a bright row for each class, with many pixels at 0 and some at 1."""
    generator = torch.Generator().manual_seed(seed)
    out = []
    for _ in range(count):
        y = torch.randint(CLASSES, (size,), generator=generator)
        x = 0.5 * torch.randn((size, *SHAPE), generator=generator, dtype=torch.float64)
        x[torch.arange(size), 0, y + 1] += 0.4
        out.append((x.clamp(0, 1).to(dtype), y))
    return out


def uniform(x: torch.Tensor, radius: float, seed: int) -> torch.Tensor:
    """Uniform in (-radius, radius), like x."""
    generator = torch.Generator().manual_seed(seed)
    return radius * (2 * torch.rand(x.shape, generator=generator, dtype=torch.float64) - 1).to(x)


# every method, with settings that keep tests short
METHODS: dict[str, Callable[..., object]] = {
    "FastAT": training.FastAT,
    "NFGSM": training.NFGSM,
    "PGDAT": lambda threat, **more: training.PGDAT(threat, **{"steps": 3, **more}),
    "TRADES": lambda threat, **more: training.TRADES(threat, **{"steps": 3, **more}),
    "MART": lambda threat, **more: training.MART(threat, **{"steps": 3, **more}),
    "FreeAT": lambda threat, **more: training.FreeAT(threat, **{"replays": 3, **more}),
    "YOPO": lambda threat, **more: training.YOPO(
        threat, **{"first_layer": "0", "outer": 2, "inner": 2, **more}
    ),
}
CRAFTED = tuple(name for name in METHODS if name not in ("FreeAT", "YOPO"))


def sgd(model: nn.Module, lr: float = 0.1) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


def train_batch(
    step,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    x: torch.Tensor,
    y: torch.Tensor,
    **more: object,
) -> list[torch.Tensor]:
    """The user's loop on one batch; the losses."""
    losses = []
    for loss in step(model, x, y, **more):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


def gradients(model: nn.Module, loss: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


def largest_difference(a: nn.Module, b: nn.Module) -> float:
    """max |w_a - w_b| over all parameters."""
    pairs: Iterator = zip(a.parameters(), b.parameters(), strict=True)
    return max(float((p - q).detach().abs().max()) for p, q in pairs)


def trace_of(model: nn.Module) -> dict[str, list]:
    """Everything about a module that a craft could change, in comparable form."""
    return {
        "training": [(name, m.training) for name, m in model.named_modules()],
        "requires_grad": [(name, p.requires_grad) for name, p in model.named_parameters()],
        "identities": [id(p) for p in model.parameters()],
        "grad": [
            None if p.grad is None else (id(p.grad), p.grad.tolist()) for p in model.parameters()
        ],
        "versions": [p._version for p in model.parameters()],
        "buffers": [(name, id(b), b.tolist()) for name, b in model.named_buffers()],
        "hooks": [
            (name, len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
            for name, m in model.named_modules()
        ],
        "attributes": [
            (name, {k: v for k, v in vars(m).items() if isinstance(v, bool)}, sorted(vars(m)))
            for name, m in model.named_modules()
        ],
    }
