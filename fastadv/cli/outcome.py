"""What came of an attack: examples, rounded to bytes if asked, verified and saved."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastadv.attacks.call import targets
from fastadv.cli import image_folder
from fastadv.cli.kept_examples import Recorder
from fastadv.cli.sources import Samples
from fastadv.cli.user_error import UserError
from fastadv.containment import contains
from fastadv.data import to_unit_interval
from fastadv.evaluation import Report
from fastadv.evaluation.accuracy import logits_of
from fastadv.files import write_atomically
from fastadv.isolation import Model
from fastadv.quantise import to_uint8


@dataclass(frozen=True)
class Outcome:
    """What came of an attack on files; (n,) tensors on the CPU.

    pixels: (n, ...) float32 in [0, 1], or bytes. success: of exactly these pixels. lost: successes
    of the attack that rounding to bytes undid.
    """

    pixels: torch.Tensor
    success: torch.Tensor
    prediction: torch.Tensor
    clean_prediction: torch.Tensor
    distance: torch.Tensor
    step: torch.Tensor
    lost: int
    report: Report

    @property
    def is_rounded(self) -> bool:
        return self.pixels.dtype == torch.uint8

    @property
    def told_of_rounding(self) -> str:
        before = int(self.report.success.sum())
        return f"rounded to 8 bits: {before - self.lost} of {before} successes survive"


def outcome_of(
    model: Model, samples: Samples, recorder: Recorder, report: Report, *, as_bytes: bool, size: int
) -> Outcome:
    """Join what the recorder kept; round to bytes if asked, and verify these. size: of a batch."""
    x, y, threat = samples.as_floats, samples.y, recorder.attack.threat
    kept = recorder.kept.joined(len(x))
    pixels, prediction = kept["x_adv"], kept["prediction"]
    distance, success, lost = report.distance, report.success, 0
    if as_bytes:
        pixels = to_uint8(pixels, x, threat)
        decoded, seed = to_unit_interval(pixels), recorder.attack.seed or 0
        prediction = logits_of(model, decoded, batch_size=size, seed=seed).argmax(1).cpu()
        goal = recorder.goal
        success = prediction != y if goal is None else (prediction == goal) & (goal != y)
        success &= contains(threat, decoded, x)
        distance = threat.distance(decoded, x)
        lost = int((report.success & ~success).sum())
    return Outcome(
        pixels, success, prediction, kept["clean_prediction"], distance, report.step, lost, report
    )


def save_outcome(outcome: Outcome, samples: Samples, path: Path) -> None:
    """One npz with x_adv, y, success, prediction, clean_prediction, distance and step; where `path`
    is a folder, the images as PNG files too, by class."""
    if path.suffix == ".npz":
        write_atomically(path, _archive(outcome, samples.y))
        return
    image_folder.write(outcome.pixels, image_folder.png_names(samples.names, samples.y), path)
    write_atomically(path / "examples.npz", _archive(outcome, samples.y))


def check_place(option: str, path: Path, samples: Samples | None = None) -> None:
    """Before an attack that may take hours: whether examples can be saved there."""
    if path.suffix not in (".npz", ""):
        raise UserError(f"--{option} must end in .npz, or be a folder for PNG images; got {path}")
    if not path.parent.is_dir():
        raise UserError(f"--{option}: there is no folder {path.parent}")
    if path.suffix == "" and path.exists():
        raise UserError(f"--{option}: {path} is there already: choose another folder")
    if path.suffix == "" and samples is not None:
        shape = tuple(samples.x.shape)
        if len(shape) != 4 or shape[1] not in (1, 3):
            raise UserError(
                f"--{option} {path}: PNG images have 1 or 3 channels; got samples of shape "
                f"{shape}: save an .npz file"
            )
        image_folder.check_pillow()


def check_spares(option: str, path: Path, *read: str | Path | None) -> None:
    """UserError if what is written would replace a file that is read."""
    for other in read:
        if other is not None and path.resolve() == Path(other).resolve() and path.exists():
            raise UserError(f"--{option}: {path} is read, and would be lost: choose another name")


def _archive(outcome: Outcome, y: torch.Tensor) -> bytes:
    arrays: dict[str, Any] = {
        "x_adv": outcome.pixels,
        "y": y,
        "success": outcome.success,
        "prediction": outcome.prediction,
        "clean_prediction": outcome.clean_prediction,
        "distance": outcome.distance,
        "step": outcome.step,
    }
    content = io.BytesIO()
    np.savez_compressed(content, **{name: value.numpy() for name, value in arrays.items()})
    return content.getvalue()


def goal_of(
    target: int | str, model: Model, x: torch.Tensor, y: torch.Tensor, *, seed: int, size: int
) -> torch.Tensor:
    """(n,) target classes, as `Attack.run` would choose them."""
    if isinstance(target, int):
        return torch.full_like(y, target)
    targets.check_rule(target)
    logits = logits_of(model, x, batch_size=size, seed=seed).cpu()
    ids = torch.arange(len(x))
    return targets.choose(target, logits, y, seed=seed, sample_ids=ids, x=x)
