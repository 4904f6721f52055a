"""Samples that a command line names: found out what they are, read, and checked."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.utils.data import DataLoader

from fastadv.cli import array_files, image_folder
from fastadv.cli.choices import FORMATS
from fastadv.cli.named_function import called
from fastadv.cli.user_error import UserError, said
from fastadv.data import load_cifar10, load_digits, load_mnist, to_unit_interval

_FOLDERS_OF_MNIST = ("", "MNIST/raw/", "raw/")
_FOLDERS_OF_CIFAR = ("", "cifar-10-batches-*/")
_BATCH_SIZE = 128  # of a Dataset, while it is read
# a format -> what a folder of it has
_PATTERNS = {
    "cifar10": [f"{f}{name}_batch*" for f in _FOLDERS_OF_CIFAR for name in ("test", "data")],
    "mnist": [f"{f}*-ubyte{suffix}" for f in _FOLDERS_OF_MNIST for suffix in ("", ".gz")],
}
_LOADERS: dict[str, Callable[[Path, Any], tuple[torch.Tensor, torch.Tensor]]] = {
    "cifar10": load_cifar10,
    "mnist": load_mnist,
}


@dataclass(frozen=True)
class Samples:
    """x: (n, ...) bytes or floats; y: (n,) int64. kind: "digits", "mnist", "cifar10" or "own".

    names: of a folder of images its files, a path below the folder each; classes: their folders, by
    label; both empty otherwise.
    """

    x: torch.Tensor
    y: torch.Tensor
    kind: str = "own"
    names: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()

    def first(self, n: int | None) -> "Samples":
        if n is None:
            return self
        if not 0 < n <= len(self.x):
            raise UserError(f"--n must be 1 to {len(self.x)}, the samples of --data; got {n}")
        return replace(self, x=self.x[:n], y=self.y[:n], names=self.names[:n])

    @property
    def as_floats(self) -> torch.Tensor:
        """x as float32, bytes scaled to [0, 1]."""
        x = self.x
        return to_unit_interval(x) if x.dtype == torch.uint8 else x.to(torch.float32)


def load_data(
    data: str | Path, kind: str, split: str, n: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The first n samples as (x, y): float32, bytes scaled to [0, 1], and int64."""
    samples = load_samples(data, kind, split).first(n)
    return samples.as_floats, samples.y


def load_samples(data: str | Path, kind: str = "auto", split: str = "test") -> Samples:
    """What --data, --format and --split name; UserError for what cannot be read."""
    text = str(data)
    if kind not in FORMATS:
        raise UserError(f"--format must be one of {', '.join(FORMATS)}; got {kind!r}")
    if split not in ("train", "test"):
        raise UserError(f"--split must be train or test; got {split!r}")
    if text == "digits":
        return Samples(*load_digits(cast(Any, split)), kind="digits")
    path = Path(data)
    if path.exists():
        return _checked(_read(path, kind, split))
    if ":" in text and not os.path.splitdrive(text)[0] and os.sep not in text:
        return _checked(_of_function(text))
    raise UserError(f"--data: no such file: {text}")


def _read(path: Path, kind: str, split: str) -> Samples:
    if kind == "auto":
        kind = _kind_of(path)
    if kind in _LOADERS:
        return Samples(*_LOADERS[kind](path, split), kind=kind)
    if kind == "folder":
        return Samples(*_folder(path, split))
    read = array_files.read_pt if kind == "pt" else array_files.read_npz
    return Samples(*read(path, split))


def _kind_of(path: Path) -> str:
    if path.is_file():
        return "pt" if path.suffix in (".pt", ".pth") else "npz"
    for kind, patterns in _PATTERNS.items():
        if any(found for pattern in patterns for found in path.glob(pattern)):
            return kind
    return "folder"


def _folder(path: Path, split: str) -> tuple[Any, ...]:
    found = image_folder.classes_of(path, split)
    if not found:
        raise UserError(
            f"--data: nothing in the folder {path} is recognised: looked for MNIST files "
            "(t10k-images-idx3-ubyte), CIFAR-10 files (test_batch, test_batch.bin) and a folder of "
            "images for each class; an npz or .pt file is given by its own path"
        )
    x, y, names, classes = image_folder.read(found)
    return x, y, "own", names, classes


def _of_function(address: str) -> Samples:
    """A Dataset, a DataLoader or (x, y) tensors."""
    given: Any = called(address, option="data", example="my_data:test_set")
    is_pair = isinstance(given, tuple | list) and len(given) == 2
    if is_pair and all(hasattr(part, "__array__") for part in given):  # tensors have it too
        x, y = (torch.as_tensor(part) for part in given)
        return Samples(x, y)
    has_items = hasattr(given, "__getitem__") and hasattr(given, "__len__") and not is_pair
    has_items &= not isinstance(given, nn.Module)  # a Sequential has both
    try:
        batches: Iterable[Any] = given
        if not isinstance(given, DataLoader):
            if not has_items:
                raise TypeError(f"{type(given).__name__}")
            data_set: Any = given
            batches = DataLoader(data_set, batch_size=_BATCH_SIZE, generator=torch.Generator())
        rows = [(torch.as_tensor(x), torch.as_tensor(y)) for x, y in batches]
        return Samples(torch.cat([x for x, _ in rows]), torch.cat([y for _, y in rows]))
    except Exception as error:  # whatever the user's data set raises
        raise UserError(
            f"--data: {address}() must return a Dataset of (x, y) pairs, or (x, y) tensors: "
            f"{said(error)}"
        ) from error


def _checked(samples: Samples) -> Samples:
    """Labels as (n,) int64; what is no samples is refused."""
    x, y = samples.x, samples.y
    if x.dtype != torch.uint8 and not x.dtype.is_floating_point:
        raise UserError(f"--data: x must be bytes or floats; got {_dtype(x)}")
    if x.ndim == 0:
        raise UserError("--data: x must have one row a sample; got a scalar")
    if not len(x):
        raise UserError("--data: it holds no samples")
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]  # as some archives of images have them
    is_integer = not y.dtype.is_floating_point and y.dtype not in (torch.bool, torch.complex64)
    if not is_integer or y.shape != x.shape[:1]:
        raise UserError(
            f"--data: y must be {len(x)} integers, one for each x; got {_dtype(y)} of shape "
            f"{tuple(y.shape)}"
        )
    return replace(samples, y=y.to(torch.int64))


def _dtype(values: torch.Tensor) -> str:
    return str(values.dtype).removeprefix("torch.")
