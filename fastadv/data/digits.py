"""The UCI 8x8 handwritten digits, embedded in the package (licence: DIGITS_LICENCE.md)."""

import io
from importlib import resources
from typing import Literal

import numpy as np
import torch

_TEST_EVERY = 5  # one image in five of each class is held out: 360 of 1,797
_WHITE = 16  # pixels count the inked cells of a 4x4 block: 0 to 16


def load_digits(split: Literal["train", "test"] = "train") -> tuple[torch.Tensor, torch.Tensor]:
    """The 1,797 handwritten digits of UCI as (x, y), with a fixed split of 1,437 and 360.

    x: (N, 1, 8, 8) float32, multiples of 1/16 in [0, 1]. y: (N,) int64, 0 to 9. Both in the
    published order. The test split holds every fifth image of the list sorted by class, 35 to 37
    a class; both splits come from the same 13 writers. Raises ValueError for another split.

    >>> x, y = load_digits("test")
    >>> x.shape, y[:4].tolist()
    (torch.Size([360, 1, 8, 8]), [0, 2, 4, 7])

    Alpaydin and Kaynak 1998, Optical Recognition of Handwritten Digits, DOI 10.24432/C50P49.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test'; got {split!r}.")
    packed = resources.files("fastadv.data").joinpath("digits.npz").read_bytes()
    with np.load(io.BytesIO(packed), allow_pickle=False) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    held_out = np.zeros(len(labels), dtype=bool)
    held_out[np.argsort(labels, kind="stable")[::_TEST_EVERY]] = True
    chosen = held_out if split == "test" else ~held_out
    x = torch.from_numpy(images[chosen]).unsqueeze(1).to(torch.float32) / _WHITE
    return x, torch.from_numpy(labels[chosen].astype(np.int64))
