"""The network that a command line names: module:function, weights from a file, or a trained run."""

from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from fastadv.cli.named_function import called
from fastadv.cli.user_error import UserError, said
from fastadv.evaluation.accuracy import logits_of
from fastadv.isolation import Model
from fastadv.ops import backend
from fastadv.recipes import TrainedRun, load_run, load_weights


class Network(NamedTuple):
    """What is attacked, and the run that it is of, if it is of one."""

    model: Model
    run: TrainedRun | None = None


def load_network(
    model: str | None, weights: Path | None, run: Path | None, device: str | None
) -> Network:
    """By --model, --weights, --run and --device; UserError for what does not go together."""
    if model is None and run is None:
        raise UserError("which model: give --model module:function, or --run FOLDER of a training")
    place = None if device is None else checked_device(device)
    own = None if model is None else load_model(model)
    if run is not None:
        return _of_run(run, own, weights, place)
    assert own is not None
    if (weights is not None or place is not None) and not isinstance(own, nn.Module):
        option = "--weights" if weights is not None else "--device"
        raise UserError(f"{option} needs an nn.Module; {model}() returned {type(own).__name__}")
    if isinstance(own, nn.Module):
        if weights is not None:
            _said_of("--weights", load_weights, own, weights)
        own.to(place)
    return Network(own)


def load_model(address: str) -> Model:
    """The model that the zero-argument function at "module:function" returns."""
    model: Any = called(address, option="model", example="nets:resnet")
    if not callable(model):
        raise UserError(f"--model: {address}() must return a model; got {type(model).__name__}")
    return cast(Model, model)


def checked_device(text: str) -> torch.device:
    try:
        device = torch.device(text)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        why = "torch knows no such device" if "Expected one of" in str(error) else said(error)
        raise UserError(f"--device {text} cannot be used here: {why}") from error
    return device


def try_out(model: Model, x: torch.Tensor) -> None:
    """Whether the model takes one sample, and ops run where it is."""
    try:
        device = logits_of(model, x[:1], batch_size=1).device
    except Exception as error:  # whatever the user's model raises on the user's data
        shape = tuple(x[:1].shape)
        text = f"the model fails on one sample, {shape}: {said(error)}{_hint(shape)}"
        raise UserError(text) from error
    try:
        backend.explain(device)
    except RuntimeError as error:
        raise UserError(str(error)) from error


def _hint(shape: tuple[int, ...]) -> str:
    if len(shape) == 4 and shape[-1] in (1, 3, 4) and shape[1] not in (1, 3, 4):
        return ". Is it channels last? A model here takes (B, C, H, W): x.transpose(0, 3, 1, 2)"
    if len(shape) == 3:
        return ". Should it have a channel axis, (B, 1, H, W)? x[:, None] has one"
    return ""


def _of_run(
    run: Path, own: Model | None, weights: Path | None, place: torch.device | None
) -> Network:
    if own is not None and not isinstance(own, nn.Module):
        raise UserError("--model must return an nn.Module to take the weights of --run")
    try:
        found = load_run(run, weights=weights, model=own, device=place or "cpu")
    except (OSError, ValueError) as error:
        text = str(error).replace("give it as model", "give --model module:function too")
        text = text.replace("give these", "give --weights, too")
        raise UserError(f"--run: {text}") from error
    return Network(found.model, found)


def _said_of(option: str, function, *arguments) -> None:
    try:
        function(*arguments)
    except (OSError, ValueError, ModuleNotFoundError) as error:
        raise UserError(f"{option}: {error}") from error
