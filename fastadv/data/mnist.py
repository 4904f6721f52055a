"""MNIST, and data sets in its format, from the published idx files."""

import gzip
import math
import os
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import torch

_PREFIX = {"train": "train", "test": "t10k"}
_GZIP_MAGIC = b"\x1f\x8b"
_BYTES_MAGIC = b"\x00\x00\x08"  # two zeros, then the element type: unsigned bytes


def read_idx(path: str | os.PathLike[str]) -> torch.Tensor:
    """One idx file of unsigned bytes, gzipped or not, as a uint8 tensor of its declared shape.

    Gzip is recognised by content, not by name. Raises FileNotFoundError if there is no such file,
    ValueError if it is not an idx file of bytes, is truncated, has trailing bytes or is a corrupt
    gzip file.

    >>> read_idx("MNIST/raw/t10k-labels-idx1-ubyte.gz")[:4]
    tensor([7, 2, 1, 0], dtype=torch.uint8)

    LeCun, Cortes and Burges, the MNIST database: file formats.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path must be an idx file; there is no file {path}.")
    content = path.read_bytes()
    if content[:2] == _GZIP_MAGIC:
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(
                f"{path} is a corrupt gzip file: {error}. Download it again."
            ) from error
    if content[:3] != _BYTES_MAGIC or len(content) < 4 or content[3] == 0:
        raise ValueError(
            f"{path} must start with the idx magic 00 00 08 and a number of dimensions above 0; "
            f"got {content[:4].hex(' ') or 'an empty file'}. Download it again."
        )
    header = 4 + 4 * content[3]
    if len(content) < header:
        raise ValueError(
            f"{path} is truncated: its header takes {header} bytes; got {len(content)}. "
            "Download it again."
        )
    shape = tuple(int(size) for size in np.frombuffer(content[4:header], dtype=">u4"))
    expected, got = math.prod(shape), len(content) - header
    if 0 in shape:
        raise ValueError(f"{path} must hold at least one element; got the shape {shape}.")
    if got < expected:
        raise ValueError(
            f"{path} is truncated: the shape {shape} takes {expected} bytes; got {got}. "
            "Download it again."
        )
    if got > expected:
        raise ValueError(
            f"{path} has {got - expected} trailing bytes: the shape {shape} takes {expected}; "
            f"got {got}. Download it again."
        )
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy())


def load_mnist(
    root: str | os.PathLike[str], split: Literal["train", "test"] = "train"
) -> tuple[torch.Tensor, torch.Tensor]:
    """MNIST as (images, labels), read from the idx files in root, root/MNIST/raw or root/raw.

    images: (N, 1, 28, 28) uint8; labels: (N,) int64, 0 to 9. N is 60,000 and 10,000 in the
    published files, but is taken from them, so that Fashion-MNIST and subsets load too. Raises
    FileNotFoundError if no folder has both files of the split, ValueError if a file is not as
    published (see `read_idx`) or if images and labels disagree.

    >>> images, labels = load_mnist("data", "test")
    >>> x = to_unit_interval(images)
    """
    if split not in _PREFIX:
        raise ValueError(f"split must be 'train' or 'test'; got {split!r}.")
    images_path, labels_path = _find_pair(Path(root), _PREFIX[split])
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.ndim != 3 or images.shape[1:] != (28, 28):
        raise ValueError(
            f"{images_path} must hold images of shape (N, 28, 28); got {tuple(images.shape)}."
        )
    if labels.ndim != 1:
        raise ValueError(
            f"{labels_path} must hold labels of shape (N,); got {tuple(labels.shape)}."
        )
    if len(images) != len(labels):
        raise ValueError(
            f"{images_path} and {labels_path} must hold as many images as labels; got "
            f"{len(images)} images and {len(labels)} labels. Do they belong to the same split?"
        )
    if labels.max() > 9:
        raise ValueError(
            f"{labels_path} must hold labels 0 to 9; got {int(labels.max())} "
            f"at index {int((labels > 9).nonzero()[0])}."
        )
    return images.unsqueeze(1), labels.to(torch.int64)


def _find_pair(root: Path, prefix: str) -> tuple[Path, Path]:
    """Images and labels in the first folder that has both."""
    names = (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte")
    folders = (root, root / "MNIST" / "raw", root / "raw")
    for folder in folders:
        images, labels = (_plain_or_gzipped(folder / name) for name in names)
        if images is not None and labels is not None:
            return images, labels
    raise FileNotFoundError(
        f"root must hold {names[0]} and {names[1]}, plain or .gz, in one folder; "
        f"got no such pair in {', '.join(map(str, folders))}."
    )


def _plain_or_gzipped(path: Path) -> Path | None:
    return next(
        (file for file in (path, path.with_name(f"{path.name}.gz")) if file.is_file()), None
    )
