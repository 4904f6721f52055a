"""What an attack must leave as it was: a model with every kind of state, and the process."""

import random

import numpy as np
import torch
from torch import nn

import fastadv
from fastadv.attacks import Attack

WAYS = [
    fastadv.Execution(batch_size=3),
    fastadv.Execution(batching="plain", batch_size=3),
]


class _Stubborn(nn.Sequential):
    """A module whose train() and eval() do nothing, as in frozen backbones."""

    def train(self, mode=True):
        return self

    def eval(self):
        return self


def training_net(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        _Stubborn(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)),
        nn.Sequential(nn.ReLU(), nn.Dropout(0.5)),
        nn.Flatten(),
        nn.Linear(16, 4),
    ).to(dtype)
    net.train()
    net[1].eval()  # the user froze one layer
    net[0].bias.requires_grad_(False)
    net[0].weight.grad = torch.full_like(net[0].weight, 0.25)
    net[1].running_mean.uniform_(-0.1, 0.1)
    return net


def images(n: int = 8, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(1)).to(dtype)
    return x, torch.arange(n) % 4


def short_attack(**more) -> Attack:
    return fastadv.pgd(fastadv.Linf(0.1), steps=3, **more)


def trace_of(model: nn.Module) -> dict[str, list]:
    """Everything about a module that an attack could change, in comparable form."""
    return {
        "training": [(name, m.training) for name, m in model.named_modules()],
        "requires_grad": [(name, p.requires_grad) for name, p in model.named_parameters()],
        "identities": [id(p) for p in model.parameters()],
        "grad": [None if p.grad is None else id(p.grad) for p in model.parameters()],
        "grad_bits": [None if p.grad is None else p.grad.tolist() for p in model.parameters()],
        "versions": [p._version for p in model.parameters()],
        "weights": [p.tolist() for p in model.parameters()],
        "buffers": [(name, b.tolist()) for name, b in model.named_buffers()],
        "hooks": [
            (name, len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
            for name, m in model.named_modules()
        ],
        "attributes": [(name, sorted(vars(m))) for name, m in model.named_modules()],
    }


def process_state() -> dict[str, object]:
    """Global state of the process, in comparable form."""
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": [str(part) for part in np.random.get_state()],
        "python": random.getstate(),
        "dtype": torch.get_default_dtype(),
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": [torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")],
        "autocast_dtype": [torch.get_autocast_dtype(kind) for kind in ("cpu", "cuda")],
        "autocast_cache": torch.is_autocast_cache_enabled(),
        "cudnn": (
            torch.backends.cudnn.enabled,
            torch.backends.cudnn.benchmark,
            torch.backends.cudnn.deterministic,
            torch.backends.cudnn.allow_tf32,
        ),
        "matmul": (
            torch.get_float32_matmul_precision(),
            torch.backends.cuda.matmul.allow_tf32,
        ),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "anomaly": torch.is_anomaly_enabled(),
        "threads": torch.get_num_threads(),
        "printing": np.geterr(),
    }
