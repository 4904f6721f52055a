"""Test samples of a benchmark: given, read from files by fastadv, or loaded by RobustBench."""

from collections.abc import Callable
from typing import Any

import torch

from fastadv.compat.robustbench import peer
from fastadv.data import load_cifar10, load_digits, load_mnist, to_unit_interval

_READERS = {"cifar10": load_cifar10, "mnist": load_mnist}


def name_of(dataset: Any) -> str | None:
    """The data set's name, None for (x, y) tensors; TypeError for anything else."""
    name = getattr(dataset, "value", dataset)
    if isinstance(name, str):
        return name
    if (
        isinstance(dataset, (tuple, list))
        and len(dataset) == 2
        and all(isinstance(part, torch.Tensor) for part in dataset)
    ):
        return None
    raise TypeError(f"dataset must be a name or (x, y) tensors; got {type(dataset).__name__}")


def load(
    dataset: Any,
    n_examples: int,
    data_dir: str,
    *,
    threat_model: str,
    model_name: str | None,
    preprocessing: str | Callable | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(images in [0, 1], labels) of the first n_examples of the test split.

    Raises FileNotFoundError if the files are not there and RobustBench, which would download them,
    cannot be imported.
    """
    name = name_of(dataset)
    if name is None:
        x, y = dataset
        return x[:n_examples], y[:n_examples]
    if preprocessing is None and name == "digits":
        x, y = load_digits("test")
        return x[:n_examples], y[:n_examples]
    if preprocessing is None and name in _READERS:
        try:
            images, labels = _READERS[name](data_dir, "test")
        except FileNotFoundError as missing:
            if name == "mnist":  # not one of RobustBench's
                raise
            try:
                peer.load("data", f"downloading {name}")
            except ImportError as error:
                raise FileNotFoundError(f"{missing} {error}") from missing
        else:
            return to_unit_interval(images[:n_examples]), labels[:n_examples]
    theirs = peer.load("data", f"dataset={name!r}")
    kinds = peer.load("model_zoo.enums", f"dataset={name!r}")
    kind = kinds.BenchmarkDataset(name)
    prepare = theirs.get_preprocessing(
        kind, kinds.ThreatModel(threat_model), model_name, preprocessing
    )
    return theirs.load_clean_dataset(kind, n_examples, data_dir, prepare)
