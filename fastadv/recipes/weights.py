"""Weights from a file into a network: tensors alone are read, and nothing in it is executed."""

import importlib
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
_INSIDE = ("state_dict", "model_state_dict", "model")  # where checkpoints of others have them
_FIRST = 3  # names of tensors that an error lists


def read_weights(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors file or a state dict that torch.save wrote, on the CPU.

    A .pt file is loaded with weights_only, so nothing in it is executed. Checkpoints that have the
    state dict under "state_dict" or "model" are taken too, and names that DataParallel, compile or
    an average of weights put before a network's own are taken off. Raises ValueError for other
    files, FileNotFoundError where there is none.

    Example: `net.load_state_dict(fastadv.recipes.read_weights("model.pt"))`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    if path.suffix not in _SUFFIXES:
        raise ValueError(f"{path} is no file of weights: these end in {', '.join(_SUFFIXES)}")
    content: Any = _safetensors(path) if path.suffix == ".safetensors" else _pickled(path)
    for name in _INSIDE:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    is_ours = (
        isinstance(content, dict)
        and content
        and all(
            isinstance(name, str) and isinstance(value, torch.Tensor)
            for name, value in content.items()
        )
    )
    if not is_ours:
        raise ValueError(f"{path} holds no state dict: a dictionary of names and tensors")
    return _without_wrappers(content)


def load_weights(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Put the weights of a file (`read_weights`) into `model`; ValueError if they do not fit."""
    weights = read_weights(path)
    there = model.state_dict()
    missing = [name for name in there if name not in weights]
    unknown = [name for name in weights if name not in there]
    shapes = [
        f"{name} is {tuple(value.shape)} there and {tuple(there[name].shape)} in the model"
        for name, value in weights.items()
        if name in there and value.shape != there[name].shape
    ]
    told = [
        *([f"it lacks {_listed(missing)}"] if missing else []),
        *([f"it has {_listed(unknown)} more"] if unknown else []),
        *([_listed(shapes)] if shapes else []),
    ]
    if told:
        raise ValueError(f"{path} does not fit the {type(model).__name__}: {'; '.join(told)}")
    model.load_state_dict(weights)


def _safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        reader = importlib.import_module("safetensors.torch")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'{path} needs safetensors: pip install "safetensors>=0.4"', name=error.name
        ) from error
    try:
        return reader.load_file(str(path), device="cpu")
    except Exception as error:  # its own errors, for damaged files
        raise ValueError(f"{path} is no safetensors file: {error}") from error


def _pickled(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or foreign file raises nearly anything
        raise ValueError(
            f"{path} holds more than tensors, or is damaged, and nothing of it was run "
            f"({type(error).__name__}): save a state dict, torch.save(net.state_dict(), path)"
        ) from error


def _without_wrappers(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    weights = {name: value for name, value in weights.items() if name != "n_averaged"}
    for prefix in ("module.", "_orig_mod."):
        while weights and all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return weights


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _FIRST} more" if len(names) > _FIRST else ""
    return f"{', '.join(names[:_FIRST])}{more}"
