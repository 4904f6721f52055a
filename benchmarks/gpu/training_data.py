"""What the AutoAttack section trains its network on, and the training, short as it is."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

import fastadv
from benchmarks.gpu.networks import tiny_resnet
from benchmarks.gpu.session import Session
from benchmarks.harness.networks import Problem
from fastadv import training
from fastadv.data import DeviceLoader, load_cifar10, to_unit_interval
from fastadv.models import preact_resnet18

_CLASSES = 10
_RATE = 0.1  # peak; it falls linearly to 0


@dataclass(frozen=True)
class Task:
    """images (N, 3, H, W) uint8 and labels (N,), x (n, 3, H, W) in [0, 1] and y to attack."""

    name: str
    is_real: bool
    images: torch.Tensor
    labels: torch.Tensor
    x: torch.Tensor
    y: torch.Tensor

    @classmethod
    def of(cls, session: Session) -> "Task":
        """CIFAR-10 where the session has its folder, else patterns."""
        n = 6 if session.tiny else 1000  # of which as many are attacked as the time suffices for
        if session.plan.data is not None:
            folder = Path(session.plan.data)
            images, labels = load_cifar10(folder, "train")
            test, y = load_cifar10(folder, "test")
            x = to_unit_interval(test[:n].to(session.device))
            where = session.device
            return cls("CIFAR-10", True, images.to(where), labels.to(where), x, y[:n].to(where))
        total, size = (60, 8) if session.tiny else (20000, 32)
        images, labels = _patterns(total + n, size, session.device)
        x = to_unit_interval(images[total:])
        name = "patterns of ten classes in noise"
        return cls(name, False, images[:total].contiguous(), labels[:total], x, labels[total:])


def _patterns(n: int, size: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of ten smooth patterns under noise: learnable in seconds, and not at once."""
    generator = torch.Generator(device).manual_seed(0)
    coarse = torch.randn(_CLASSES, 3, 4, 4, generator=generator, device=device)
    patterns = F.interpolate(coarse, size=(size, size), mode="bilinear")
    labels = torch.randint(_CLASSES, (n,), generator=generator, device=device)
    noise = torch.randn(n, 3, size, size, generator=generator, device=device)
    images = 0.5 + 0.1 * patterns[labels] + 0.15 * noise
    return (images.clamp(0, 1) * 255).round().to(torch.uint8), labels


def trained(session: Session, task: Task, *, seconds: float) -> Problem:
    """A network after so many seconds of Fast-AT at 8/255, in eval mode on the device."""
    device = session.device
    model = (tiny_resnet() if session.tiny else preact_resnet18()).to(device)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    loader = DeviceLoader(
        task.images,
        task.labels,
        batch_size=20 if session.tiny else 256,
        device=device,
        channels_last=True,
        crop=task.images.shape[-1] // 8 if task.is_real else 0,
        flip="random" if task.is_real else None,
    )
    step = training.FastAT(
        fastadv.Linf(8 / 255), step_size=10 / 255, precision="bf16" if session.on_gpu else None
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=_RATE, momentum=0.9, weight_decay=5e-4)
    limit = 6 if session.tiny else 100_000
    batches = 0
    began = time.monotonic()
    for x, y in _endless(loader):
        if batches % 10 == 0 and session.on_gpu:
            torch.cuda.synchronize()  # the host would run ahead of the clock
        done = max((time.monotonic() - began) / seconds, batches / limit)
        if done >= 1:
            break
        optimizer.param_groups[0]["lr"] = _RATE * min(1.0, 0.02 + 5 * done) * (1 - done)
        loss = step.loss(model, x, y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        batches += 1
    kind = "tiny_resnet" if session.tiny else "preact_resnet18"
    name = f"{kind}, {batches} batches of Fast-AT"
    model.to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    return Problem(name, f"{task.name}, held out", model, task.x, task.y)


def _endless(loader: DeviceLoader) -> Iterator[tuple[torch.Tensor, ...]]:
    while True:
        yield from loader
