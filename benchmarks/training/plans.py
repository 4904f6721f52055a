"""The speed-run's recipes, and that their steps are the textbook's."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

import fastadv
from benchmarks import reference
from benchmarks.harness import schema
from fastadv import training
from fastadv.models import build
from fastadv.models.registry import ModelName
from fastadv.ops.augment.batch import Flip


@dataclass(frozen=True)
class Plan:
    """A recipe. peak: (fraction of the run, learning rate) of the triangular schedule, which ends
    at 0. noise, step: in units of eps. limit: training samples, None for all, of which 1,000 are
    held out."""

    dataset: str
    model: ModelName
    eps: float
    epochs: int
    batch_size: int
    peak: tuple[float, float]
    momentum: float
    weight_decay: float
    label_smoothing: float
    ema: float | None
    crop: int
    flip: Flip | None
    method: str
    steps: int
    step: float
    warm_up: float = 0.0
    limit: int | None = None


PLANS = {
    "cifar10": Plan(
        "cifar10", "preact-resnet18", 8 / 255, 15, 256, (0.5, 0.2), 0.9, 5e-4, 0.1, 0.99, 4,
        "alternate", "nfgsm", 1, 1.0,
    ),
    "cifar10-cpu": Plan(
        "cifar10", "fast-cifar", 8 / 255, 4, 128, (0.4, 0.1), 0.9, 5e-4, 0.1, 0.98, 4,
        "alternate", "nfgsm", 1, 1.0, limit=5000,
    ),
    "mnist": Plan(
        "mnist", "mnist", 0.3, 5, 100, (0.4, 0.1), 0.9, 0.0, 0.0, None, 0, None, "pgd", 5, 0.25,
        warm_up=2.5,
    ),
}  # fmt: skip


def make_step(plan: Plan, batches: int, seed: int, precision: str) -> training.CraftedStep:
    threat = fastadv.Linf(plan.eps)
    common: dict[str, Any] = dict(
        label_smoothing=plan.label_smoothing,
        eps_warmup=round(plan.warm_up * batches),
        seed=seed,
        precision=precision,
        step_size=plan.step * plan.eps,
    )
    if plan.method == "nfgsm":
        return training.NFGSM(threat, **common)
    if plan.method == "fast":
        return training.FastAT(threat, **common)
    return training.PGDAT(threat, steps=plan.steps, **common)


def parity(plan: Plan, x: torch.Tensor, y: torch.Tensor) -> schema.Equality:
    """Largest difference of the weights from the textbook's after three fp32 steps on one batch."""
    threat, step_size = fastadv.Linf(plan.eps), plan.step * plan.eps
    x_start = fastadv.start_point(threat, x, seed=0)
    noise = x_start - x
    ours, theirs = (build(plan.model, seed=0).to(x.device) for _ in range(2))
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.01) for net in (ours, theirs)]
    step = make_step(replace(plan, label_smoothing=0.0, warm_up=0.0), 1, 0, "fp32")
    step.bn = "train"
    textbook: dict[str, Callable[[], object]] = {
        "fast": lambda: reference.fast_step(
            theirs,
            optimizers[1],
            x,
            y,
            eps=plan.eps,
            step_size=step_size,
            noise=noise,
            clamp_start=True,
        ),
        "nfgsm": lambda: reference.nfgsm_step(
            theirs, optimizers[1], x, y, step_size=step_size, noise=noise
        ),
        "pgd": lambda: reference.pgd_step(
            theirs,
            optimizers[1],
            x,
            y,
            eps=plan.eps,
            step_size=step_size,
            steps=plan.steps,
            noise=noise,
        ),
    }
    for _ in range(3):
        for loss in step(ours, x, y, x_init=x_start):
            optimizers[0].zero_grad()
            loss.backward()
            optimizers[0].step()
        textbook[plan.method]()
    pairs = zip(ours.parameters(), theirs.parameters(), strict=True)
    error = max(float((a - b).detach().abs().max()) for a, b in pairs)
    metric = "max |w - textbook| after 3 SGD steps, rate 0.01, one fp32 batch"
    return schema.Equality(error, 1e-5, metric, f"textbook {plan.method} step")
