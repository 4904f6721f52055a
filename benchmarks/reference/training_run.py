"""What surrounds the textbook steps in the authors' scripts: loaders, learning rates, epochs."""

from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from fastadv.data import to_unit_interval

Step = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Loader(Sized, Iterable[tuple[torch.Tensor, torch.Tensor]], Protocol):
    """Batches (x, y), again at each `iter`; `len` is their number."""


class PerSampleImages(Dataset):
    """A torch Dataset that turns one uint8 image at a time into float32 in [0, 1].

    images: (N, C, H, W) uint8, C 1 or 3; labels: (N,). Each item goes the way of torchvision's
    data sets and ToTensor: a PIL image, a numpy copy with the channels last, a permutation, a
    contiguous copy, a float, a division by 255.

    Example: `DataLoader(PerSampleImages(images, labels), batch_size=100, shuffle=True)`.
    """

    def __init__(self, images: torch.Tensor, labels: torch.Tensor):
        if images.dtype != torch.uint8:
            raise TypeError(f"images must be uint8, as on disk; got {images.dtype}.")
        self.images = images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        pixels = self.images[index]
        picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        image = torch.from_numpy(np.array(picture)).view(*pixels.shape)
        return image.permute(2, 0, 1).contiguous().float().div(255), int(self.labels[index])


@dataclass(frozen=True)
class Preloaded:
    """Shuffled batches of tensors that are in memory as a whole; see `preloaded`."""

    x: torch.Tensor
    y: torch.Tensor
    batch_size: int
    generator: torch.Generator

    def __len__(self) -> int:
        return -(-len(self.x) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        order = torch.randperm(len(self.x), generator=self.generator, device=self.generator.device)
        for rows in order.split(self.batch_size):
            yield self.x[rows], self.y[rows]


def preloaded(
    x: torch.Tensor, y: torch.Tensor, batch_size: int, generator: torch.Generator
) -> Preloaded:
    """Batches of the whole set in memory, in a new order of `generator` each epoch.

    x: (N, ...), uint8 images being converted to float32 in [0, 1] once; y: (N,). The last batch may
    be short. What a careful user writes by hand in place of a DataLoader.

    Example: `preloaded(*load_mnist("data"), 100, torch.Generator().manual_seed(0))`.
    """
    return Preloaded(to_unit_interval(x) if x.dtype == torch.uint8 else x, y, batch_size, generator)


def interpolated_lr(epochs: float, *, peak: float, peak_at: float) -> Callable[[float], float]:
    """The learning rate at t epochs: 0 at 0, `peak` at `peak_at`, 0 at `epochs`, linear between.

    The authors of Fast-AT take peak_at = 0.4 * epochs for MNIST, 0.5 * epochs for CIFAR-10.

    >>> interpolated_lr(10, peak=5e-3, peak_at=4)(7)
    0.0025
    """
    return lambda t: float(np.interp(t, [0, peak_at, epochs], [0, peak, 0]))


def train(
    step: Step,
    loader: Loader,
    optimizer: torch.optim.Optimizer,
    *,
    epochs: int,
    lr: Callable[[float], float],
) -> list[float]:
    """Epochs of a textbook step; the mean training loss of each epoch.

    step: (x, y) to the loss of the minibatch, the model updated. lr: the learning rate as a
    function of the epochs done at the end of the minibatch, set before it. As in the authors'
    scripts the loss is read by `.item()` after each minibatch, which waits for the device; they
    read the accuracy as well.

    Example: `train(step, loader, adam, epochs=10, lr=interpolated_lr(10, peak=5e-3, peak_at=4))`
    with `step = lambda x, y: fast_step(net, adam, x, y, noise=draw(x), ...)`.
    """
    means = []
    for epoch in range(epochs):
        total, seen = 0.0, 0
        for i, (x, y) in enumerate(loader):
            optimizer.param_groups[0].update(lr=lr(epoch + (i + 1) / len(loader)))
            loss = step(x, y)
            total += loss.item() * len(y)
            seen += len(y)
        means.append(total / seen)
    return means
