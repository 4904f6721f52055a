"""Adversarial data sets: attack a data loader into one file, and load it again."""

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, get_args

import torch
from torch.utils.data import DataLoader, TensorDataset

from fastadv.compat.torchattacks import normalization
from fastadv.data.images import to_unit_interval
from fastadv.files import save_tensors
from fastadv.isolation import Model
from fastadv.ops import doubles
from fastadv.quantise import to_uint8
from fastadv.threat_model import ThreatModel

_WHITE = 255
SaveType = Literal["float", "int"]
_TYPES = get_args(SaveType)


class _Attack(Protocol):
    """What `save` needs of an attack."""

    model: Model
    normalization_used: normalization.Normalization | None

    def threat(self) -> ThreatModel: ...
    def normalize(self, inputs: torch.Tensor) -> torch.Tensor: ...
    def get_output_with_eval_nograd(self, inputs: torch.Tensor) -> torch.Tensor: ...
    def _attacked(
        self, inputs: torch.Tensor, labels: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]: ...


def save(
    attack: _Attack,
    data_loader: DataLoader[Any],
    save_path: str | os.PathLike[str] | None,
    *,
    verbose: bool,
    predictions: bool,
    clean_inputs: bool,
    save_type: SaveType,
) -> tuple[float, float, float]:
    """Attack every (inputs, labels) of data_loader; (robust accuracy in %, L2, seconds).

    The file, of torchattacks' own format, holds images in [0, 1]: float, or uint8 (save_type "int")
    rounded to the nearest level inside the eps-ball. Accuracy, L2 (mean over the misclassified, in
    [0, 1] units, NaN if there are none) and predictions are those of the images as they are saved;
    in mode "targeted(label)" the labels, hence what counts as correct, are the targets.
    The file is written once, after the last batch, and replaces an older one only when whole.
    """
    if save_type not in _TYPES:
        raise ValueError(f"save_type must be one of {_TYPES}; got {save_type!r}")
    started = time.perf_counter()
    columns: dict[str, list[torch.Tensor]] = {"adv_inputs": [], "labels": []}
    if predictions:
        columns["preds"] = []
    if clean_inputs:
        columns["clean_inputs"] = []
    tally = _Tally()
    for inputs, labels in data_loader:
        x, x_adv = attack._attacked(inputs, labels)
        if save_type == "int":
            levels = to_uint8(x_adv, x, attack.threat())
            stored, x_adv = levels, to_type(levels, "float").to(x.dtype)
        else:
            stored = x_adv
        seen = x_adv if attack.normalization_used is None else attack.normalize(x_adv)
        prediction = attack.get_output_with_eval_nograd(seen).argmax(1)
        tally.add(prediction, labels.to(prediction.device), x_adv, x)
        clean = to_type(x, "int") if save_type == "int" else x
        batch = {"adv_inputs": stored, "labels": labels, "preds": prediction, "clean_inputs": clean}
        if save_path is not None:
            for name, rows in columns.items():
                rows.append(batch[name].detach().cpu())
        if verbose:
            _report(tally, data_loader, time.perf_counter() - started, end="\r")
    if tally.batches == 0:
        raise ValueError("data_loader is empty: there is nothing to attack")
    if save_path is not None:
        contents: dict[str, Any] = {name: torch.cat(rows) for name, rows in columns.items()}
        save_tensors(save_path, {**contents, "save_type": save_type})
    seconds = time.perf_counter() - started
    if verbose:
        _report(tally, data_loader, seconds, end="\n")
    return tally.accuracy_sync(), tally.l2_sync(), seconds


def load(
    load_path: str | os.PathLike[str],
    batch_size: int | None = 128,
    shuffle: bool = False,
    normalize: Mapping[str, Sequence[float]] | None = None,
    load_predictions: bool = False,
    load_clean_inputs: bool = False,
) -> DataLoader[Any]:
    """A loader of (adv_inputs, labels, predictions, clean_inputs), the last two where asked for.

    Images come as floats in [0, 1], or normalised by normalize={"mean": ..., "std": ...}. Reads
    files of torchattacks too, without executing code. Raises ValueError for what is not in it.
    """
    contents = torch.load(load_path, map_location="cpu", weights_only=True)
    names = ["adv_inputs", "labels"]
    names += ["preds"] * load_predictions + ["clean_inputs"] * load_clean_inputs
    missing = [name for name in names if name not in contents]
    if missing:
        raise ValueError(
            f"{os.fspath(load_path)} has no {missing}: it was saved without save_predictions or "
            "save_clean_inputs"
        )
    for name in ("adv_inputs", "clean_inputs"):
        if name in names:
            rows = to_type(contents[name], "float")
            if normalize is not None:
                used = normalization.make(normalize["mean"], normalize["std"])
                mean, std = normalization.channels(used, rows)
                rows = (rows - mean) / std
            contents[name] = rows
    data = TensorDataset(*[contents[name] for name in names])
    return DataLoader(data, batch_size=batch_size, shuffle=shuffle)


def to_type(inputs: torch.Tensor, type: SaveType) -> torch.Tensor:
    """Images as uint8 levels ("int", to the nearest) or as floats in [0, 1] ("float")."""
    if type not in _TYPES:
        raise ValueError(f"type must be one of {_TYPES}; got {type!r}")
    if type == "int" and inputs.is_floating_point():
        levels = (doubles.doubled(inputs) * _WHITE).round().clamp(0, _WHITE)
        return doubles.returned(levels.to(torch.uint8), inputs)
    if type == "float" and inputs.dtype == torch.uint8:
        return to_unit_interval(inputs)
    return inputs


class _Tally:
    """Counts kept on the device: nothing waits for them until they are read."""

    def __init__(self) -> None:
        self.batches = 0
        self.total = 0
        self.wrong: torch.Tensor | int = 0
        self.l2: torch.Tensor | float = 0.0

    def add(
        self, prediction: torch.Tensor, labels: torch.Tensor, x_adv: torch.Tensor, x: torch.Tensor
    ) -> None:
        wrong = prediction != labels
        difference = doubles.doubled(x_adv) - doubles.doubled(x)
        distance = doubles.returned(difference.flatten(1).square().sum(1).sqrt(), x)
        self.batches += 1
        self.total += len(x)
        self.wrong = self.wrong + wrong.sum()
        self.l2 = self.l2 + distance.masked_fill(~wrong, 0.0).sum()

    def accuracy_sync(self) -> float:
        return 100 * (1 - int(self.wrong) / self.total) if self.total else float("nan")

    def l2_sync(self) -> float:
        wrong = int(self.wrong)
        return float(self.l2) / wrong if wrong else float("nan")


def _report(tally: _Tally, data_loader: DataLoader[Any], seconds: float, *, end: str) -> None:
    try:
        progress = f"{tally.batches}/{len(data_loader)}"
    except TypeError:  # a loader of an iterable data set has no length
        progress = f"{tally.batches}"
    print(
        f"- batch {progress} | robust accuracy {tally.accuracy_sync():.2f} % | "
        f"L2 {tally.l2_sync():.5f} | {seconds:.1f} s",
        end=end,
        flush=True,
    )
