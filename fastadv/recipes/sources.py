"""Training samples of a recipe, as bytes, and those of them that are kept for looking on."""

import os
from collections.abc import Callable
from typing import NamedTuple

import torch

from fastadv.data import load_cifar10, load_digits, load_mnist
from fastadv.ops.augment.batch import check_images
from fastadv.recipes.settings import Dataset

CLASSES = 10  # of all three data sets
_LOADERS: dict[str, Callable[[str | os.PathLike[str]], tuple[torch.Tensor, torch.Tensor]]] = {
    "mnist": load_mnist,
    "cifar10": load_cifar10,
}


class Split(NamedTuple):
    """Byte images (N, C, H, W) and labels (N,) to train on, and those held out."""

    images: torch.Tensor
    labels: torch.Tensor
    held_images: torch.Tensor
    held_labels: torch.Tensor


def training_data(
    dataset: Dataset, root: str | os.PathLike[str] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The training split as (N, C, H, W) uint8 images and (N,) int64 labels; never the test split.

    root: the folder of MNIST's or CIFAR-10's files; the digits, rounded to 8 bits, are embedded and
    need none. Raises ValueError for another data set or a missing root, and what the readers raise.

    Example: `images, labels = fastadv.recipes.training_data("digits")`.
    """
    if dataset == "digits":
        x, y = load_digits("train")
        return (x * 255).round().to(torch.uint8), y
    if dataset not in _LOADERS:
        raise ValueError(f"dataset must be digits, {' or '.join(_LOADERS)}; got {dataset!r}")
    if root is None:
        raise ValueError(f"{dataset} is read from files: give the folder that holds them as data")
    return _LOADERS[dataset](root)


def check_data(images: object, labels: object, *, classes: int = CLASSES) -> None:
    """Raises TypeError or ValueError unless these are byte images and a label in [0, classes)
    each."""
    if not isinstance(images, torch.Tensor) or not isinstance(labels, torch.Tensor):
        raise TypeError(
            "data must be (images, labels), two tensors; got "
            f"({type(images).__name__}, {type(labels).__name__})"
        )
    check_images(images)
    if labels.dtype.is_floating_point or labels.shape != images.shape[:1]:
        raise ValueError(
            f"labels must be {len(images)} integers, one an image; got {labels.dtype} of shape "
            f"{tuple(labels.shape)}"
        )
    if len(images) < 10:
        raise ValueError(f"images must be 10 at least, to hold some out; got {len(images)}")
    outside = ((labels < 0) | (labels >= classes)).nonzero()
    if len(outside):
        row = int(outside[0])
        raise ValueError(
            f"labels must lie in [0, {classes}); got {int(labels[row])} at index {row}"
        )


def split(images: torch.Tensor, labels: torch.Tensor, *, held_out: int) -> Split:
    """Every k-th sample held out, `held_out` in all but at most a fifth: also of sorted data."""
    count = min(held_out, len(images) // 5)
    is_held = torch.zeros(len(images), dtype=torch.bool)
    is_held[torch.arange(count) * len(images) // count] = True
    is_held = is_held.to(images.device)
    return Split(images[~is_held], labels[~is_held], images[is_held], labels[is_held])
