"""The ways to train that are timed: fastadv's steps and loader, the textbook's two loops."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

import fastadv
from benchmarks import reference
from benchmarks.training.cases import BETA, REPLAYS, Split, TrainingCase, network, textbook_network
from fastadv import training
from fastadv.data import DeviceLoader

BASELINE = "textbook, preloaded"
PER_SAMPLE = "textbook, per-sample loader"
CHANNELS_LAST = "fastadv, channels_last"

Batch = tuple[torch.Tensor, torch.Tensor]
# (x, y, noise): one minibatch up to its last optimizer.step(); noise None: the method's own
Update = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], None]


@dataclass(frozen=True)
class Setting:
    """Where and in which precision to train. dtype: of weights; precision: "fp32" or "bf16"."""

    device: torch.device
    dtype: torch.dtype = torch.float32
    precision: str = "fp32"


@dataclass
class Trainer:
    """A network in training: `run` takes it through the next minibatches, epoch after epoch."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    update: Update
    loader: Any  # iterable of Batch, with a length
    _batches: Iterator[Batch] | None = None

    def next_batch(self) -> Batch:
        if self._batches is None:
            self._batches = _endless(self.loader)
        return next(self._batches)

    def run(self, batches: int) -> None:
        for _ in range(batches):
            x, y = self.next_batch()
            self.update(x, y, None)


def _endless(loader: Iterable[Batch]) -> Iterator[Batch]:
    while True:
        yield from loader


def make_step(case: TrainingCase, precision: str = "fp32") -> Any:
    """fastadv's training step of the case."""
    threat = fastadv.Linf(case.eps)
    common: dict[str, Any] = {"step_size": case.step_size, "precision": precision}
    if case.method == "free":
        return training.FreeAT(threat, replays=REPLAYS, **common)
    if case.method == "fast":
        return training.FastAT(threat, clamp_start=case.clamp_start, **common)
    if case.method == "pgd":
        return training.PGDAT(threat, steps=case.steps, **common)
    return training.TRADES(threat, steps=case.steps, beta=BETA, **common)


def start_of(case: TrainingCase, x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """x + noise as the textbook step begins from it."""
    is_clamped = case.method == "pgd" or (case.method == "fast" and case.clamp_start)
    return (x + noise).clamp(0, 1) if is_clamped else x + noise


def noise_of(case: TrainingCase, x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The random start of the authors: uniform in the eps box, for TRADES 0.001 times normals."""
    if case.method == "trades":
        return torch.empty_like(x).normal_(0, 0.001, generator=generator)
    return torch.empty_like(x).uniform_(-case.eps, case.eps, generator=generator)


def optimizer_of(
    case: TrainingCase, model: nn.Module, *, fused: bool | None = None
) -> torch.optim.Optimizer:
    if case.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), lr=case.rate, fused=fused)
    return torch.optim.SGD(
        model.parameters(), lr=case.rate, momentum=0.9, weight_decay=5e-4, fused=fused
    )


def _placed(model: nn.Module, setting: Setting, channels_last: bool) -> nn.Module:
    model = model.to(setting.device, setting.dtype)
    if channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def fastadv_trainer(
    case: TrainingCase, split: Split, setting: Setting, *, channels_last: bool
) -> Trainer:
    """DeviceLoader, step and a fused optimizer, with nothing read back."""
    model = _placed(network(case), setting, channels_last)
    optimizer = optimizer_of(case, model, fused=True)
    step = make_step(case, setting.precision if setting.dtype == torch.float32 else "fp32")
    loader = DeviceLoader(
        split.images,
        split.labels,
        batch_size=case.batch_size,
        channels_last=channels_last,
        device=setting.device,
    )

    def update(x: torch.Tensor, y: torch.Tensor, noise: torch.Tensor | None) -> None:
        more = {}
        if noise is not None and case.method != "free":
            more["x_init"] = start_of(case, x, noise)
        for loss in step(model, x, y, **more):
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    return Trainer(model, optimizer, update, loader)


def textbook_step(
    case: TrainingCase, model: nn.Module, optimizer: torch.optim.Optimizer
) -> Callable[[torch.Tensor, torch.Tensor, Any], torch.Tensor]:
    """(x, y, noise) to the loss of `benchmarks.reference`'s step of the case; Free has no noise."""
    common: dict[str, Any] = {"eps": case.eps, "step_size": case.step_size}
    if case.method == "free":
        kept: list[torch.Tensor] = []  # the perturbation, carried over minibatches

        def free(x: torch.Tensor, y: torch.Tensor, noise: None) -> torch.Tensor:
            if not kept:
                kept.append(torch.zeros_like(x))
            return reference.free_replays(
                model, optimizer, x, y, kept[0], eps=case.eps, replays=REPLAYS
            )

        return free
    if case.method == "fast":
        return lambda x, y, noise: reference.fast_step(
            model, optimizer, x, y, noise=noise, clamp_start=case.clamp_start, **common
        )
    if case.method == "pgd":
        return lambda x, y, noise: reference.pgd_step(
            model, optimizer, x, y, noise=noise, steps=case.steps, **common
        )
    return lambda x, y, noise: reference.trades_step(
        model, optimizer, x, y, noise=noise, steps=case.steps, beta=BETA, **common
    )


def textbook_trainer(
    case: TrainingCase,
    split: Split,
    setting: Setting,
    *,
    per_sample: bool = False,
    channels_last: bool = False,
) -> Trainer:
    """The authors' step and its `loss.item()`, over a DataLoader of samples or tensors in memory.

    The DataLoader works in the training process, as in the authors' MNIST script. channels_last is
    not theirs: it tells what the layout gains from what the step gains.
    """
    model = _placed(textbook_network(case), setting, channels_last)
    optimizer = optimizer_of(case, model)
    step = textbook_step(case, model, optimizer)
    order = torch.Generator().manual_seed(0)
    noise_generator = torch.Generator(setting.device).manual_seed(0)
    if per_sample:
        samples = reference.PerSampleImages(split.images, split.labels)
        batches = DataLoader(samples, case.batch_size, shuffle=True, generator=order)
        loader: Any = _Moved(batches, setting.device)
    else:
        order = torch.Generator(setting.device).manual_seed(0)
        images, labels = split.images.to(setting.device), split.labels.to(setting.device)
        loader = reference.preloaded(images, labels, case.batch_size, order)

    def update(x: torch.Tensor, y: torch.Tensor, noise: torch.Tensor | None) -> None:
        if noise is None and case.method != "free":
            noise = noise_of(case, x, noise_generator)
        with _precision(setting):
            step(x, y, None if case.method == "free" else noise).item()

    return Trainer(model, optimizer, update, loader)


@dataclass(frozen=True)
class _Moved:
    """The batches of a loader, each moved to a device."""

    loader: DataLoader
    device: torch.device

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        return ((x.to(self.device), y.to(self.device)) for x, y in self.loader)


def _precision(setting: Setting) -> contextlib.AbstractContextManager:
    if setting.precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(setting.device.type, torch.bfloat16)


Build = Callable[[TrainingCase, Split, Setting], Trainer]
PROVIDERS: dict[str, Build] = {
    "fastadv": lambda *given: fastadv_trainer(*given, channels_last=False),
    CHANNELS_LAST: lambda *given: fastadv_trainer(*given, channels_last=True),
    PER_SAMPLE: lambda *given: textbook_trainer(*given, per_sample=True),
    BASELINE: lambda *given: textbook_trainer(*given),
    f"{BASELINE}, channels_last": lambda *given: textbook_trainer(*given, channels_last=True),
}
