"""What `train` learns from: the samples that it was given, and whose recipe that calls for."""

from pathlib import Path
from typing import NamedTuple

import torch

from fastadv.cli.sources import load_samples
from fastadv.cli.user_error import UserError
from fastadv.recipes import DATASETS, training_data

_LEVELS = 255
_EXACT = 1e-4  # of a level: what float32 leaves of k / 255


class Lessons(NamedTuple):
    """images: (N, C, H, W) bytes. dataset: whose recipe. name: of the samples. classes: of them."""

    images: torch.Tensor
    labels: torch.Tensor
    dataset: str
    name: str
    classes: int = 10
    note: str = ""


def load_lessons(dataset: str | None, data: str | None) -> Lessons:
    """By --dataset and --data; where the first is left out, the recipe is that of such images."""
    if dataset is not None and dataset not in DATASETS:
        raise UserError(f"--dataset must be one of {', '.join(DATASETS)}; got {dataset!r}")
    if data is None or data == "digits":
        chosen = dataset or "digits"
        if data is None and chosen in ("mnist", "cifar10"):
            raise UserError(f"--data is needed: the folder that holds the files of {chosen}")
        source = "digits" if data == "digits" else chosen
        images, labels = training_data(source, None)  # type: ignore[arg-type]
        return Lessons(images, labels, chosen, source)
    samples = load_samples(data, split="train")
    if samples.kind != "own":
        return Lessons(samples.x, samples.y, dataset or samples.kind, samples.kind)
    if samples.x.ndim != 4:
        raise UserError(
            f"--data: train takes images (N, C, H, W); got samples of shape "
            f"{tuple(samples.x.shape)}: other data are trained on from Python (docs/training.md)"
        )
    images, note = _as_bytes(samples.x)
    if int(samples.y.min()) < 0:
        raise UserError(f"--data: labels must be 0 or more; got {int(samples.y.min())}")
    classes = max(2, int(samples.y.max()) + 1)
    name = data if ":" in data else Path(data).name
    return Lessons(images, samples.y, dataset or _recipe_for(images), name, classes, note)


def _recipe_for(images: torch.Tensor) -> str:
    if images.shape[2] <= 8:
        return "digits"
    return "mnist" if images.shape[1] == 1 else "cifar10"


def _as_bytes(x: torch.Tensor) -> tuple[torch.Tensor, str]:
    """Training keeps images as bytes: (bytes, what that changed)."""
    if x.dtype == torch.uint8:
        return x.contiguous(), ""
    if not bool(((x >= 0) & (x <= 1)).all()):
        low, high = x.min().item(), x.max().item()
        raise UserError(
            f"--data: floats must lie in [0, 1]; got {low:.4g} to {high:.4g}. A network that wants "
            "other inputs: fastadv.Normalized(net, mean, std)"
        )
    levels = x.double() * _LEVELS
    rounded = levels.round()
    is_exact = bool(((levels - rounded).abs() <= _EXACT).all())
    note = "" if is_exact else "images are rounded to 8 bits, as which training keeps them"
    return rounded.to(torch.uint8).contiguous(), note
