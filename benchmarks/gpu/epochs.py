"""Section "training": Fast-AT with its loader against the textbook's two, then step by step."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from benchmarks import reference
from benchmarks.gpu import training as gpu_training
from benchmarks.gpu.attack_providers import Watched
from benchmarks.gpu.bars import CPU_LOADER, ON_DEVICE
from benchmarks.gpu.bars import EPOCH as CASE
from benchmarks.gpu.session import Session
from benchmarks.gpu.training import GRAPHED, Setting, Update
from benchmarks.harness import harness, schema
from fastadv.data import DeviceLoader, load_cifar10, to_unit_interval

_BATCH = 128
_EPOCH = 50_000 // _BATCH  # minibatches, the incomplete one left out
_MINIBATCHES = 32  # of one timed call
_WORKERS = 2  # as in the authors' script
_TIMED = (
    f"{_MINIBATCHES} consecutive minibatches of an epoch of 50,000 images, loader and optimizer "
    "included, no augmentation; bf16 by autocast for all"
)
_NOT_TIMED = "import, construction, first minibatches with compilation and graph capture, workers"

Batch = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Images:
    """images (N, 3, H, W) uint8, labels (N,), on the host."""

    images: torch.Tensor
    labels: torch.Tensor

    @classmethod
    def of(cls, session: Session) -> "Images":
        """CIFAR-10 where the session has its folder, else noise, which takes as long."""
        if session.plan.data is not None:
            return cls(*load_cifar10(Path(session.plan.data), "train"))
        n, size = (24, 8) if session.tiny else (50_000, 32)
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(256, (n, 3, size, size), generator=generator, dtype=torch.uint8)
        return cls(images, torch.randint(10, (n,), generator=generator))


def main(session: Session) -> None:
    if session.may_begin(CASE):
        with session.guarded(CASE):
            run_case(session)
    gpu_training.main(session)


def run_case(session: Session) -> None:
    data = Images.of(session)
    batch, count = (4, 2) if session.tiny else (_BATCH, _MINIBATCHES)
    case = next(
        case
        for case in gpu_training.cases(tiny=session.tiny)
        if case.method == "fast" and case.batch_size == batch
    )
    setting = Setting(case, session.device, session.tiny)
    wide = replace(setting, dtype=torch.float64, autocast=False)
    runs: dict[str, Watched] = {}
    equalities: dict[str, schema.Equality] = {}
    for name, build, batches in (
        (ON_DEVICE, gpu_training.TEXTBOOK, _on_device(data, batch, session.device)),
        (CPU_LOADER, gpu_training.TEXTBOOK, _from_host(data, batch, session)),
        (GRAPHED, GRAPHED, _by_device_loader(data, batch, session.device)),
    ):
        with session.guarded(f"{CASE}, {name}"):
            make, last, parity = gpu_training.PROVIDERS[build]
            equalities[name] = parity(wide)
            update = make(setting, setting.network(channels_last=last))
            runs[name] = Watched(_minibatches(update, batches, count), session.device)
    if not runs:
        return
    description = harness.Case(
        suite=gpu_training.SUITE,
        name=CASE,
        shape=(batch, *data.images.shape[1:]),
        dtype="bfloat16 autocast",
        n=count * batch,
        timed=_TIMED,
        not_timed=_NOT_TIMED,
        baseline=ON_DEVICE if ON_DEVICE in runs else next(iter(runs)),
    )
    print(CASE)
    rows = session.measure(
        description, runs, lambda name, loss: equalities[name], harness.Timing(5)
    )
    session.add([_told(row, count, runs[row.provider]) for row in rows])


def _told(row: schema.Row, count: int, watched: Watched) -> schema.Row:
    ms = row.q50 / count
    extra = {"ms_per_minibatch": ms, "seconds_per_epoch": ms / 1e3 * _EPOCH}
    if watched.peak_mib is not None:
        extra["peak_memory_mib"] = watched.peak_mib
    return replace(row, extra=extra)


def _minibatches(
    update: Update, batches: Iterator[Batch], count: int
) -> Callable[[], torch.Tensor]:
    def run() -> torch.Tensor:
        loss = torch.zeros(())
        for _ in range(count):
            loss = update(*next(batches))
        return loss.detach()

    return run


def _on_device(data: Images, batch: int, device: torch.device) -> Iterator[Batch]:
    """Shuffled slices of float32 images in the device's memory."""
    x, y = to_unit_interval(data.images.to(device)), data.labels.to(device)
    generator = torch.Generator(device).manual_seed(0)
    while True:
        order = torch.randperm(len(x), generator=generator, device=device)
        for rows in order[: len(x) // batch * batch].split(batch):
            yield x[rows], y[rows]


def _from_host(data: Images, batch: int, session: Session) -> Iterator[Batch]:
    """torch's DataLoader of one image at a time; its workers fetch ahead between timed calls."""
    more: dict[str, Any] = {}
    if session.on_gpu:
        more = {"num_workers": _WORKERS, "pin_memory": True}
    loader = DataLoader(
        reference.PerSampleImages(data.images, data.labels),
        batch,
        shuffle=True,
        drop_last=True,
        generator=torch.Generator().manual_seed(0),
        **more,
    )
    for x, y in _endless(loader):
        yield x.to(session.device), y.to(session.device)


def _by_device_loader(data: Images, batch: int, device: torch.device) -> Iterator[Batch]:
    yield from _endless(
        DeviceLoader(
            data.images,
            data.labels,
            batch_size=batch,
            drop_last=True,
            channels_last=True,
            device=device,
        )
    )


def _endless(loader: Iterable[Any]) -> Iterator[Batch]:
    while True:
        yield from loader
