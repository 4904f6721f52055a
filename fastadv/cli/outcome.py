"""Attack a model of the user's on data from files, and save the adversarial examples."""

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastadv.attacks import Attack, AttackResult
from fastadv.attacks.call import targets
from fastadv.cli.user_error import UserError, said
from fastadv.containment import contains
from fastadv.data import to_unit_interval
from fastadv.evaluation import Report, evaluate
from fastadv.evaluation.accuracy import logits_of
from fastadv.evaluation.checkpoint import write_atomically
from fastadv.execution import Auto, Execution
from fastadv.isolation import Model
from fastadv.ops import backend
from fastadv.quantise import to_uint8

_BATCH_SIZE = 128


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


def attack_files(
    model: Model,
    x: torch.Tensor,
    y: torch.Tensor,
    attack: Attack,
    *,
    target: int | str | None,
    as_bytes: bool,
    batch_size: int | None,
    execution: Auto | None = None,
) -> Outcome:
    """Attack every sample, round to bytes if asked, and verify what will be saved."""
    size = batch_size or _BATCH_SIZE
    try:
        device = logits_of(model, x[:1], batch_size=1).device
    except Exception as error:  # whatever the user's model raises on the user's data
        shape = tuple(x[:1].shape)
        raise UserError(f"the model fails on one sample, {shape}: {said(error)}") from error
    try:
        backend.explain(device)
    except RuntimeError as error:
        raise UserError(str(error)) from error
    try:
        given = batch_size if execution == "auto" else size
        return _attack(
            model,
            x,
            y,
            attack,
            target=target,
            as_bytes=as_bytes,
            size=size,
            given=given,
            execution=execution,
        )
    except NotImplementedError:  # the library's own, which says what to do
        raise
    except RuntimeError as error:
        raise UserError(f"attacking {size} samples at once fails: {said(error)}") from error


def _attack(
    model: Model,
    x: torch.Tensor,
    y: torch.Tensor,
    attack: Attack,
    *,
    target: int | str | None,
    as_bytes: bool,
    size: int,
    given: int | None,
    execution: Auto | None,
) -> Outcome:
    """given: the size of the attack's batches, None for what the execution says."""
    goal = None if target is None else _goal(target, model, x, y, attack.seed, size)
    recorder = _Recorder(attack, goal)
    report = evaluate(model, (x, y), recorder, batch_size=given, execution=execution)
    pixels, prediction = recorder.column("x_adv"), recorder.column("prediction")
    distance, success, lost = report.distance, report.success, 0
    if as_bytes:
        pixels = to_uint8(pixels, x, attack.threat)
        decoded = to_unit_interval(pixels)
        prediction = logits_of(model, decoded, batch_size=size, seed=attack.seed).argmax(1).cpu()
        success = prediction != y if goal is None else (prediction == goal) & (goal != y)
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
