"""A curve's file read again: strict JSON, every field of it checked, nothing executed."""

import json
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, NoReturn

import torch

_TEXTS = ("model", "attack", "execution", "norm", "date")
_COUNTS = ("attacked", "forwards", "backwards")


def read(path: Path, curve: type) -> dict[str, Any]:
    """The fields of the dataclass `curve` in the file; ValueError if it is not of one."""
    if path.suffix != ".json":
        raise ValueError(
            f"path must end in .json: of a curve's files it alone holds all; got {path}"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("samples"), dict):
        _refuse(path, "it has no samples")
    radii = content.get("eps")
    if not isinstance(radii, list) or not radii or not all(_is(eps, float) for eps in radii):
        _refuse(path, "eps is not a list of radii")
    given: dict[str, Any] = {"eps": tuple(float(eps) for eps in radii)}
    given["clean_correct"] = _column(path, content["samples"], "clean_correct", ())
    n = len(given["clean_correct"])
    given["robust"] = _column(path, content["samples"], "robust", (len(radii),))
    if len(given["robust"]) != n:
        _refuse(path, "samples.robust and samples.clean_correct differ in length")
    for field in fields(curve):
        name = field.name
        if name in given or (name not in content and field.default is not MISSING):
            continue
        value = content.get(name)
        if name in _TEXTS and not isinstance(value, str):
            _refuse(path, f"{name} is not a text")
        if name in _COUNTS:
            if not isinstance(value, list) or len(value) != len(radii):
                _refuse(path, f"{name} is not a count for each radius")
            if not all(_is(count, int) for count in value):
                _refuse(path, f"{name} is not a count for each radius")
            value = tuple(value)
        if name in ("warnings", "environment"):
            kind = int if name == "warnings" else str
            if not isinstance(value, dict) or not all(_is(v, kind) for v in value.values()):
                _refuse(path, f"{name} is not what a curve has")
        given[name] = value
    return given


def _column(path: Path, samples: dict[str, Any], name: str, shape: tuple[int, ...]) -> torch.Tensor:
    values = samples.get(name)
    try:
        column = torch.tensor(values)
    except (TypeError, ValueError, RuntimeError):
        _refuse(path, f"samples.{name} is not a table of true and false")
    if column.dtype != torch.bool or column.shape[1:] != shape or not column.ndim:
        _refuse(path, f"samples.{name} is not a table of true and false")
    return column


def _is(value: object, kind: type) -> bool:
    """A text, a count (int) or a number >= 0 (float)."""
    if kind is str:
        return isinstance(value, str)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return value >= 0 and (kind is float or isinstance(value, int))


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a finite number")


def _refuse(path: Path, reason: str) -> NoReturn:
    raise ValueError(f"{path} is not a curve that Curve.save wrote: {reason}")
