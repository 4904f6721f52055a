"""A small convolutional network for the 8x8 digits, fresh or trained."""

import io
from importlib import resources
from typing import Literal

import numpy as np
import torch
from torch import nn

from fastadv.models.arguments import require_positive
from fastadv.models.initialisation import build_seeded

_WIDTH, _CLASSES = 16, 10  # those that the package has weights for
_WEIGHTS = {"standard": "digits_standard.npz", "fast-at": "digits_fast_at.npz"}


class DigitsNet(nn.Sequential):
    """Two convolutions and two linear layers: (B, 1, 8, 8) to (B, classes) logits.

    width: channels of the first convolution; the second has twice as many. 38,282 parameters at
    width 16 and 10 classes. No normalisation layers: train and eval mode agree. Raises ValueError
    if width or classes is below 1.
    """

    def __init__(self, width: int = _WIDTH, *, classes: int = _CLASSES):
        require_positive(width=width, classes=classes)
        super().__init__(
            nn.Conv2d(1, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(2 * width * 4 * 4, 64),
            nn.ReLU(),
            nn.Linear(64, classes),
        )


def digits_net(
    seed: int = 0,
    *,
    classes: int = _CLASSES,
    width: int = _WIDTH,
    weights: Literal["standard", "fast-at"] | None = None,
) -> DigitsNet:
    """A `DigitsNet` on the CPU, a pure function of its arguments: fresh, or trained already.

    Inputs as `fastadv.data.load_digits` gives them, in [0, 1]. The global generators are neither
    read nor written.

    weights: None draws them by seed, in training mode. A name loads those that come with the
    package, in eval mode, whatever the seed; they were trained on the 1,437 digits of the split
    "train" by `python -m fastadv.demo.weights`, seed 0. On the 360 of "test", L-infinity, eps =
    0.18 (PGD-50-10: 50 steps, 10 restarts, seed 0):

    - "standard": 30 epochs of Adam on clean digits. Clean 97.5 %, PGD-50-10 1.9 %.
    - "fast-at": 40 epochs of Fast-AT at eps = 0.18 (Wong et al. 2020, arXiv:2001.03994; label
      smoothing 0.2). Clean 98.9 %, PGD-50-10 65.3 %.

    Raises ValueError if width or classes is below 1, for another name, and for weights of another
    width or number of classes; and for a seed that is a name.

    >>> digits_net(seed=1)(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """
    if isinstance(seed, str):
        raise ValueError(f"seed must be an integer; got {seed!r}. Trained: weights={seed!r}.")
    net = build_seeded(lambda: DigitsNet(width, classes=classes), seed=seed)
    if weights is None:
        return net
    if weights not in _WEIGHTS:
        raise ValueError(f"weights must be one of {', '.join(_WEIGHTS)}; got {weights!r}.")
    if (width, classes) != (_WIDTH, _CLASSES):
        raise ValueError(
            f"weights={weights!r} are of width={_WIDTH}, classes={_CLASSES}; got width={width}, "
            f"classes={classes}. Leave both out, or train a network of that size."
        )
    net.load_state_dict(_read(_WEIGHTS[weights]))
    return net.eval()


def _read(name: str) -> dict[str, torch.Tensor]:
    packed = resources.files("fastadv.models").joinpath(name).read_bytes()
    with np.load(io.BytesIO(packed), allow_pickle=False) as arrays:
        return {key: torch.from_numpy(arrays[key].astype(np.float32)) for key in arrays.files}
