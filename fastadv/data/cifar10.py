"""CIFAR-10 from the published files, binary or python version."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from fastadv.data.array_pickle import read_array_pickle

_BATCHES = {"train": tuple(f"data_batch_{k}" for k in range(1, 6)), "test": ("test_batch",)}
_PIXELS = 3 * 32 * 32  # red, green and blue planes, row-major
_RECORD = 1 + _PIXELS  # binary version: the label's byte comes first
_Reader = Callable[[Path], tuple[np.ndarray, np.ndarray]]


def load_cifar10(
    root: str | os.PathLike[str], split: Literal["train", "test"] = "train"
) -> tuple[torch.Tensor, torch.Tensor]:
    """CIFAR-10 as (images, labels), read from the unpacked binary or python version.

    root: the folder that holds cifar-10-batches-bin or cifar-10-batches-py, or one of these; the
    binary version is preferred. images: (N, 3, 32, 32) uint8; labels: (N,) int64, 0 to 9, in the
    published order. N is 50,000 and 10,000 in the published files, but is taken from their sizes,
    so that subsets load too. The pickles of the python version are read without running any code
    they may hold. Raises FileNotFoundError if no folder has all files of the split, ValueError if
    a file is not as published.

    >>> images, labels = load_cifar10("data", "test")
    >>> x = to_unit_interval(images)

    Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images.
    """
    if split not in _BATCHES:
        raise ValueError(f"split must be 'train' or 'test'; got {split!r}.")
    paths, read = _find_batches(Path(root), _BATCHES[split])
    images, labels = zip(*(read(path) for path in paths), strict=True)
    for path, batch_labels in zip(paths, labels, strict=True):
        wrong = np.flatnonzero((batch_labels < 0) | (batch_labels > 9))
        if len(wrong):
            raise ValueError(
                f"{path} must hold labels 0 to 9; got {batch_labels[wrong[0]]} at index "
                f"{wrong[0]}. Is it a batch of CIFAR-10, and complete?"
            )
    return (
        torch.from_numpy(np.concatenate(images).reshape(-1, 3, 32, 32)),
        torch.from_numpy(np.concatenate(labels).astype(np.int64)),
    )


def _find_batches(root: Path, names: tuple[str, ...]) -> tuple[list[Path], _Reader]:
    """The files of a split in the first folder that has them all, and what reads them."""
    candidates: tuple[tuple[Path, str, _Reader], ...] = (
        (root, ".bin", _read_binary),
        (root / "cifar-10-batches-bin", ".bin", _read_binary),
        (root, "", _read_python),
        (root / "cifar-10-batches-py", "", _read_python),
    )
    incomplete = ""
    for folder, suffix, read in candidates:
        paths = [folder / f"{name}{suffix}" for name in names]
        missing = [path.name for path in paths if not path.is_file()]
        if not missing:
            return paths, read
        if len(missing) < len(paths):
            incomplete += f" {folder} lacks {', '.join(missing)}."
    raise FileNotFoundError(
        f"root must hold {', '.join(names)}, all with .bin (cifar-10-batches-bin) or all without "
        f"(cifar-10-batches-py), itself or in the folder of that name; got {root}, where they are "
        f"in no folder.{incomplete}"
    )


def _read_binary(path: Path) -> tuple[np.ndarray, np.ndarray]:
    size = path.stat().st_size
    if size == 0 or size % _RECORD:
        raise ValueError(
            f"{path} must be a positive multiple of {_RECORD} bytes (one label and {_PIXELS} "
            f"pixels an image; 30,730,000 as published); got {size}. Download it again."
        )
    records = np.fromfile(path, dtype=np.uint8).reshape(-1, _RECORD)
    return records[:, 1:], records[:, 0]


def _read_python(path: Path) -> tuple[np.ndarray, np.ndarray]:
    batch = read_array_pickle(path)
    for key in ("data", "labels"):
        if key not in batch:
            raise ValueError(
                f"{path} must hold the keys 'data' and 'labels'; got {sorted(batch)}. "
                "Is it a batch of CIFAR-10?"
            )
    pixels = batch["data"]
    if not isinstance(pixels, np.ndarray):
        raise ValueError(f"{path} must hold an array as 'data'; got {type(pixels).__name__}.")
    if (
        pixels.dtype != np.uint8
        or pixels.ndim != 2
        or pixels.shape[1] != _PIXELS
        or not len(pixels)
    ):
        raise ValueError(
            f"{path} must hold 'data' of dtype uint8 and shape (N, {_PIXELS}), N > 0; "
            f"got {pixels.dtype} and {pixels.shape}."
        )
    labels = batch["labels"]
    values = labels.tolist() if isinstance(labels, np.ndarray) else labels
    if not isinstance(values, list) or not all(type(value) is int for value in values):
        raise ValueError(
            f"{path} must hold a list of integers as 'labels'; got {type(labels).__name__}"
            f"{' of other values' if isinstance(values, list) else ''}."
        )
    if len(values) != len(pixels):
        raise ValueError(
            f"{path} must hold one label an image; got {len(pixels)} images and "
            f"{len(values)} labels."
        )
    return pixels, np.array(values)
