"""Models and data that a command line names: read, and what is wrong with them said in one line."""

import importlib
import os
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastadv.cli.user_error import UserError, said
from fastadv.data import load_cifar10, load_mnist, to_unit_interval
from fastadv.isolation import Model

FORMATS = ("auto", "npz", "mnist", "cifar10")
_FOLDERS_OF_MNIST = ("", "MNIST/raw/", "raw/")
_FOLDERS_OF_CIFAR = ("", "cifar-10-batches-*/")
# a loader -> what a folder that it reads has
_PATTERNS = {
    load_cifar10: [f"{f}{name}_batch*" for f in _FOLDERS_OF_CIFAR for name in ("test", "data")],
    load_mnist: [f"{f}*-ubyte{suffix}" for f in _FOLDERS_OF_MNIST for suffix in ("", ".gz")],
}
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


def load_model(address: str) -> Model:
    """The model that the zero-argument function at "module:function" returns.

    The module is looked for in the current directory first.
    """
    module_name, colon, function_name = address.partition(":")
    if not (module_name and colon and function_name):
        raise UserError(f"--model must be module:function, as in nets:resnet; got {address!r}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the user's module may do anything when it is imported
        raise UserError(f"--model: importing {module_name!r} fails: {said(error)}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise UserError(f"--model: {module_name!r} has no function {function_name!r}")
    try:
        model = function()
    except Exception as error:
        raise UserError(f"--model: {address}() fails: {said(error)}") from error
    if not callable(model):
        raise UserError(f"--model: {address}() must return a model; got {type(model).__name__}")
    return model  # type: ignore[return-value]


def load_data(
    path: Path, kind: str, split: str, n: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The first n samples as (x, y): float32 in [0, 1], int64.

    kind "auto" is npz for a file of that suffix, else MNIST or CIFAR-10, whichever the folder has.
    """
    if kind not in FORMATS:
        raise UserError(f"--format must be one of {', '.join(FORMATS)}; got {kind!r}")
    if not path.exists():
        raise UserError(f"--data: there is no {path}")
    x, y = _reader(path, kind)(path, split)
    x = to_unit_interval(x) if x.dtype == torch.uint8 else x.to(torch.float32)
    if n is not None and not 0 < n <= len(x):
        raise UserError(f"--n must be 1 to {len(x)}, the samples of {path}; got {n}")
    return x[:n], y[:n]


def _reader(path: Path, kind: str) -> Callable[[Path, Any], tuple[torch.Tensor, torch.Tensor]]:
    if kind == "npz" or (kind == "auto" and path.is_file()):
        return _read_npz
    if kind == "mnist":
        return load_mnist
    if kind == "cifar10":
        return load_cifar10
    for load, patterns in _PATTERNS.items():
        if any(found for pattern in patterns for found in path.glob(pattern)):
            return load
    raise UserError(
        f"--data: nothing in the folder {path} is recognised: looked for MNIST files "
        "(t10k-images-idx3-ubyte) and CIFAR-10 files (test_batch, test_batch.bin); an npz file is "
        "given by its own path"
    )


def _read_npz(path: Path, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Arrays x (n, ...), bytes or floats in [0, 1], and y (n,); pickled objects are refused."""
    try:
        # a file of our own: numpy leaves one that is no archive open
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            x, y = arrays["x"], arrays["y"]
    except KeyError as error:
        raise UserError(f"--data: {path} must hold the arrays x and y: {said(error)}") from error
    except _UNREADABLE as error:
        raise UserError(f"--data: {path} is not a readable npz file: {said(error)}") from error
    if x.dtype != np.uint8 and x.dtype.kind != "f":
        raise UserError(f"--data: x must be bytes or floats; got {x.dtype}")
    if x.ndim == 0:
        raise UserError("--data: x must have one row a sample; got a scalar")
    if y.dtype.kind not in "iu" or y.shape != x.shape[:1]:
        raise UserError(
            f"--data: y must be {len(x)} integers, one for each x; got {y.dtype} of shape {y.shape}"
        )
    return torch.from_numpy(x), torch.from_numpy(y.astype(np.int64))
