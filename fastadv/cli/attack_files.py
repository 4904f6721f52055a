"""Attack a model of the user's on data from files, and save the adversarial examples."""

import importlib
import inspect
import io
import os
import sys
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastadv.attacks import Attack, AttackResult
from fastadv.attacks.attack import constructors
from fastadv.attacks.call import targets
from fastadv.data import load_cifar10, load_mnist, to_unit_interval
from fastadv.evaluation import Report, evaluate
from fastadv.evaluation.accuracy import logits_of
from fastadv.evaluation.checkpoint import write_atomically
from fastadv.execution import Execution
from fastadv.isolation import Model
from fastadv.ops import backend
from fastadv.quantise import to_uint8
from fastadv.threat_model import L1, L2, Linf, ThreatModel, contains

FORMATS = ("auto", "npz", "mnist", "cifar10")
ATTACKS = constructors()
_BATCH_SIZE = 128
_THREATS = {"linf": Linf, "l2": L2, "l1": L1}
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


class UserError(Exception):
    """A mistake in what was asked for, said in one line."""


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
        raise UserError(f"--model: importing {module_name!r} fails: {_said(error)}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise UserError(f"--model: {module_name!r} has no function {function_name!r}")
    try:
        model = function()
    except Exception as error:
        raise UserError(f"--model: {address}() fails: {_said(error)}") from error
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
        raise UserError(f"--data: {path} must hold the arrays x and y: {_said(error)}") from error
    except _UNREADABLE as error:
        raise UserError(f"--data: {path} is not a readable npz file: {_said(error)}") from error
    if x.dtype != np.uint8 and x.dtype.kind != "f":
        raise UserError(f"--data: x must be bytes or floats; got {x.dtype}")
    if x.ndim == 0:
        raise UserError("--data: x must have one row a sample; got a scalar")
    if y.dtype.kind not in "iu" or y.shape != x.shape[:1]:
        raise UserError(
            f"--data: y must be {len(x)} integers, one for each x; got {y.dtype} of shape {y.shape}"
        )
    return torch.from_numpy(x), torch.from_numpy(y.astype(np.int64))


def make_threat(norm: str, eps: float) -> ThreatModel:
    if norm not in _THREATS:
        raise UserError(f"--norm must be one of {', '.join(_THREATS)}; got {norm!r}")
    return _THREATS[norm](eps)


def make_attack(name: str, threat: ThreatModel, options: dict[str, Any]) -> Attack:
    """The attack of that name; options that are None are left to its defaults."""
    if name not in ATTACKS:
        raise UserError(f"--attack must be one of {', '.join(ATTACKS)}; got {name!r}")
    constructor = ATTACKS[name]
    given = {key: value for key, value in options.items() if value is not None}
    for key in given:
        if key not in inspect.signature(constructor).parameters:
            raise UserError(f"--{key.replace('_', '-')} does not apply to {name}")
    return constructor(threat, **given)


def make_target(text: str | None) -> int | str | None:
    """A class index, or one of the rules that `Attack.run` knows."""
    return int(text) if text is not None and text.isdecimal() else text


def attack_files(
    model: Model,
    x: torch.Tensor,
    y: torch.Tensor,
    attack: Attack,
    *,
    target: int | str | None,
    as_bytes: bool,
    batch_size: int | None,
) -> Outcome:
    """Attack every sample, round to bytes if asked, and verify what will be saved."""
    size = batch_size or _BATCH_SIZE
    try:
        device = logits_of(model, x[:1], batch_size=1).device
    except Exception as error:  # whatever the user's model raises on the user's data
        shape = tuple(x[:1].shape)
        raise UserError(f"the model fails on one sample, {shape}: {_said(error)}") from error
    try:
        backend.explain(device)
    except RuntimeError as error:
        raise UserError(str(error)) from error
    try:
        return _attack(model, x, y, attack, target=target, as_bytes=as_bytes, size=size)
    except NotImplementedError:  # the library's own, which says what to do
        raise
    except RuntimeError as error:
        raise UserError(f"attacking {size} samples at once fails: {_said(error)}") from error


def _attack(
    model: Model,
    x: torch.Tensor,
    y: torch.Tensor,
    attack: Attack,
    *,
    target: int | str | None,
    as_bytes: bool,
    size: int,
) -> Outcome:
    goal = None if target is None else _goal(target, model, x, y, attack.seed, size)
    recorder = _Recorder(attack, goal)
    report = evaluate(model, (x, y), recorder, batch_size=size)
    pixels, prediction = recorder.column("x_adv"), recorder.column("prediction")
    distance, success, lost = report.distance, report.success, 0
    if as_bytes:
        pixels = to_uint8(pixels, x, attack.threat)
        decoded = to_unit_interval(pixels)
        prediction = logits_of(model, decoded, batch_size=size, seed=attack.seed).argmax(1).cpu()
        success = prediction != y if goal is None else prediction == goal
        success &= contains(attack.threat, decoded, x)
        distance = attack.threat.distance(decoded, x)
        lost = int((report.success & ~success).sum())
    clean_prediction = recorder.column("clean_prediction")
    return Outcome(
        pixels, success, prediction, clean_prediction, distance, report.step, lost, report
    )


def save_outcome(outcome: Outcome, y: torch.Tensor, path: Path) -> None:
    """One npz with x_adv, y, success, prediction, clean_prediction, distance and step."""
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
    arrays = {name: value.numpy() for name, value in arrays.items()}
    np.savez_compressed(content, **arrays)
    write_atomically(path, content.getvalue())


def _goal(
    target: int | str, model: Model, x: torch.Tensor, y: torch.Tensor, seed: int, batch_size: int
) -> torch.Tensor:
    """(n,) target classes, as `Attack.run` would choose them."""
    if isinstance(target, int):
        return torch.full_like(y, target)
    targets.check_rule(target)
    logits = logits_of(model, x, batch_size=batch_size, seed=seed).cpu()
    ids = torch.arange(len(x))
    return targets.choose(target, logits, y, seed=seed, sample_ids=ids, x=x)


@dataclass
class _Recorder:
    """An attack that keeps its results, for `evaluate` reports no images; and has targets."""

    attack: Attack
    goal: torch.Tensor | None
    results: list[AttackResult] = field(default_factory=list)

    def run(
        self,
        model: Model,
        x: torch.Tensor,
        y: torch.Tensor | None = None,
        *,
        sample_ids: torch.Tensor | None = None,
        execution: Execution | None = None,
    ) -> AttackResult:
        assert sample_ids is not None, "evaluate gives them"
        goal = None if self.goal is None else self.goal.to(x.device)[sample_ids]
        result = self.attack.run(
            model, x, y, target=goal, sample_ids=sample_ids, execution=execution
        )
        self.results.append(result)
        return result

    def column(self, name: str) -> torch.Tensor:
        return torch.cat([getattr(result, name) for result in self.results]).cpu()

    def __repr__(self) -> str:
        return repr(self.attack)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.attack, name)


def _said(error: BaseException) -> str:
    """The error in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
