"""Arrays of samples in npz and .pt files, read without running anything in them."""

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastadv.cli.image_folder import SUFFIXES as IMAGES
from fastadv.cli.user_error import UserError, said

_PAIRS = (("x", "y"), ("images", "labels"), ("data", "labels"), ("X", "Y"))
_NAMED_SPLITS = (("x_{}", "y_{}"), ("{}_images", "{}_labels"), ("X_{}", "y_{}"))
# what numpy and zipfile raise on files that are damaged, encrypted or of another kind
_UNREADABLE = (
    OSError,
    ValueError,
    TypeError,
    EOFError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)


def read_npz(path: Path, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(x, y) of an npz file; pickled objects are refused."""
    if path.suffix == ".npy":
        raise UserError(
            f"--data: {path} holds one array, and samples are images and labels: save both in an "
            'npz file, numpy.savez("data.npz", x=x, y=y)'
        )
    if path.suffix.lower() in IMAGES:
        raise UserError(f"--data: {path} is one image: give a folder that has one folder a class")
    try:
        # a file of our own: numpy leaves one that is no archive open
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            names = _names(path, arrays.files, split)
            x, y = (arrays[name] for name in names)
    except _UNREADABLE as error:
        # what numpy says of it: to load it unsafely
        told = "it holds other things than arrays" if "unsafely" in str(error) else said(error)
        raise UserError(f"--data: {path} is not a readable npz file: {told}") from error
    return _tensor(names[0], x), _tensor(names[1], y)


def read_pt(path: Path, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(x, y) of a .pt file: a tuple of two tensors, or a dictionary of them by name."""
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or foreign file raises nearly anything
        raise UserError(
            f"--data: {path} holds more than tensors, or is damaged, and nothing of it was run "
            f'({type(error).__name__}): torch.save({{"x": x, "y": y}}, path) is readable'
        ) from error
    if isinstance(content, Mapping):
        content = [content[name] for name in _names(path, [*content], split)]
    is_pair = isinstance(content, tuple | list) and len(content) == 2
    if not is_pair or not all(isinstance(part, torch.Tensor) for part in content):
        raise UserError(
            f"--data: {path} must hold two tensors, (x, y); got {type(content).__name__}"
        )
    x, y = content
    return x, y


def _names(path: Path, there: list[str], split: str) -> tuple[str, str]:
    """Those of images and labels."""
    splits = tuple((x.format(split), y.format(split)) for x, y in _NAMED_SPLITS)
    for pair in (*_PAIRS, *splits):
        if set(pair) <= set(there):
            return pair
    raise UserError(
        f"--data: {path} must hold the arrays x and y, images and labels, or x_{split} and "
        f"y_{split}; it has {', '.join(map(str, there)) or 'none'}"
    )


def _tensor(name: str, array: np.ndarray) -> torch.Tensor:
    if array.dtype.kind not in "uif":
        raise UserError(f"--data: {name} must be bytes, floats or integers; got {array.dtype}")
    if array.dtype.kind in "ui" and array.dtype != np.uint8:
        array = array.astype(np.int64)  # torch has no uint16 arithmetic
    native = array.dtype.newbyteorder("=")  # torch has no other
    return torch.from_numpy(array.astype(native, order="C", copy=False))
