"""Small data sets in the published formats; runs whose training warnings are not of interest."""

import struct
import warnings
from pathlib import Path

import numpy as np
import pytest

from fastadv.training import TrainingWarning


def _pixels(n: int, shape: tuple[int, ...]) -> np.ndarray:
    """Images in which each class has its own bright stripe: learnable, and no two alike."""
    places = np.arange(n * int(np.prod(shape))).reshape(n, *shape)
    noise = (places * 2654435761 >> 7) % 60
    for row in range(n):
        noise[row, ..., 2 * (row % 10) : 2 * (row % 10) + 2, :] += 150
    return noise.astype(np.uint8)


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, Path | None]:
    """Where each data set is: 60 images of MNIST's and CIFAR-10's kind; the digits are embedded."""
    root = tmp_path_factory.mktemp("data")
    labels = (np.arange(60) % 10).astype(np.uint8)
    mnist = _pixels(60, (28, 28))
    for name, values in (("images-idx3", mnist), ("labels-idx1", labels)):
        sizes = struct.pack(f">{values.ndim}I", *values.shape)
        header = bytes([0, 0, 8, values.ndim]) + sizes
        (root / f"train-{name}-ubyte").write_bytes(header + values.tobytes())
    cifar = _pixels(60, (3, 32, 32)).reshape(60, -1)
    records = np.concatenate([labels[:, None], cifar], axis=1).reshape(5, -1)
    for k, batch in enumerate(records, 1):
        (root / f"data_batch_{k}.bin").write_bytes(batch.tobytes())
    return {"digits": None, "mnist": root, "cifar10": root}


@pytest.fixture
def unwarned():
    """A tiny run looks stuck now and then; tests of warnings ask for them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TrainingWarning)
        yield
