"""Reports read back from their JSON files."""

import json
import math
import sys
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

import torch

from fastadv.attacks.call.result import Cost, Stage
from fastadv.evaluation import examples
from fastadv.values import same_value

COLUMNS = {
    "clean_correct": torch.bool,
    "robust": torch.bool,
    "success": torch.bool,
    "step": torch.int64,
    "distance": torch.float64,
    "broken_by": torch.int64,
    "clean_score": torch.float64,
    "score": torch.float64,
}
_OF_SOME = ("broken_by", "clean_score", "score")  # of ensembles, of objectives with a score
_SCORES = ("clean_score", "score")
_NOT_FINITE = {  # JSON has no such numbers
    "distance": ("inf",),
    **dict.fromkeys(_SCORES, ("nan", "inf", "-inf")),
}
_PLAIN = {torch.bool: (bool,), torch.int64: (int,), torch.float64: (float, int)}
_TEXT = ("model", "attack", "threat", "norm", "search", "backend", "execution", "date")
_NORMS = ("linf", "l2", "l1", "l0")
_COUNTS = ("n", "forwards", "backwards")
_COUNTS_OR_NONE = ("steps", "restarts")
_NUMBERS_OR_NONE = ("eps", "seed")
_DERIVED = {Cost: "share_of_limit", Stage: "robust_accuracy"}  # written beside their fields


def read(path: Path, report: type) -> dict[str, Any]:
    """The fields of the dataclass `report` in the file; ValueError if it is not of one."""
    if path.suffix != ".json":
        raise ValueError(
            f"path must end in .json: of the files of a report it alone holds every sample; got "
            f"{path}"
        )
    if not path.exists():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        content = json.loads(
            path.read_text(encoding="utf-8"), parse_constant=_finite, parse_float=_finite
        )
    except (ValueError, RecursionError) as error:  # also of integers of thousands of digits
        raise ValueError(f"{path} is not a JSON file: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("samples"), dict):
        _refuse(path, "it has no samples")
    samples = content["samples"]
    names = {f.name for f in fields(report)} - COLUMNS.keys()
    given = {name: content[name] for name in names if name in content}
    given.update(_columns(path, samples))
    for field in fields(report):
        if field.name not in given and field.default is MISSING:
            _refuse(path, f"it has no {field.name}")
    for name in _TEXT:
        if not isinstance(given.get(name, ""), str):
            _refuse(path, f"{name} is not a text")
    if not isinstance(given.get("objective"), str | None):
        _refuse(path, "objective is not a text")
    if given["norm"] not in (*_NORMS, ""):  # none: of an attack without a threat model
        _refuse(path, f"norm is {given['norm']!r}, not one of {', '.join(_NORMS)}")
    for name in (*_COUNTS, *_COUNTS_OR_NONE):
        value = content.get(name)
        if not _is_of(value, int) and (value is not None or name in _COUNTS):
            _refuse(path, f"{name} is not an integer of 0 or more, below 2**63")
    for name in ("seconds", *_NUMBERS_OR_NONE):
        value = given[name]
        if not _is_of(value, float) and (value is not None or name == "seconds"):
            _refuse(path, f"{name} is not a number")
    if content["n"] != len(given["robust"]):
        _refuse(path, f"n is {content['n']}, but it has {len(given['robust'])} samples")
    if ("score" in given) != ("clean_score" in given):
        _refuse(path, "it has one of the samples' clean_score and score, without the other")
    if bool((given["robust"] & given["success"]).any()):
        _refuse(path, "samples are robust although the attack has a success on them")
    for name, kind in (("warnings", int), ("environment", str)):
        if not _is_dict_of(given[name], kind):
            _refuse(path, f"{name} is not what a report has")
    try:
        given["examples"] = examples.read(content.get("examples", []))
    except ValueError as error:
        _refuse(path, str(error))
    given["cost"] = _tuple_of(Cost, path, content.get("cost"))
    stages = content.get("stages")
    if not isinstance(stages, list):
        _refuse(path, "stages is not a list")
    given["stages"] = tuple(_tuple_of(Stage, path, stage) for stage in stages)
    return given


def written(number: float | None) -> float | str | None:
    """For strict JSON: NaN and infinities in words."""
    return number if number is None or math.isfinite(number) else str(number)


def values_of(name: str, column: torch.Tensor) -> list[Any]:
    """A column for strict JSON; of the numbers only scores, which are the user's, may be NaN, and
    distances where nothing was found infinite."""
    values = column.tolist()
    return [written(value) for value in values] if name in _NOT_FINITE else values


def is_same(one: object, other: object) -> bool:
    """`same_value`, but NaN is a number like any other."""
    if not (isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)):
        return same_value(one, other)
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    return bool(((one == other) | ((one != one) & (other != other))).all())


def _columns(path: Path, samples: dict[str, Any]) -> dict[str, torch.Tensor]:
    columns, length = {}, None
    for name, kind in COLUMNS.items():
        values = samples.get(name)
        if values is None and name in _OF_SOME:
            continue
        if name in _NOT_FINITE and isinstance(values, list):
            values = [float(v) if v in _NOT_FINITE[name] else v for v in values]
        if not isinstance(values, list) or any(type(v) not in _PLAIN[kind] for v in values):
            _refuse(path, f"samples.{name} is not a list of {kind} values")
        if length not in (None, len(values)) or not values:
            _refuse(path, f"samples.{name} has {len(values)} values, not {length or 'one or more'}")
        length = len(values)
        try:
            columns[name] = torch.tensor(values, dtype=kind)
        except (ValueError, RuntimeError, OverflowError) as error:
            _refuse(path, f"samples.{name} has values that {kind} cannot hold ({error})")
    return columns


def _tuple_of(kind: Any, path: Path, values: object) -> Any:
    called = f"a {kind.__name__.lower()}"
    if not isinstance(values, dict):
        _refuse(path, f"{called} of it is not a table")
    wanted = {*kind._fields, _DERIVED[kind]}
    if missing := wanted - values.keys():
        _refuse(path, f"fields of {called} are missing: {', '.join(sorted(missing))}")
    if unknown := values.keys() - wanted:
        _refuse(path, f"fields of {called} are unknown: {', '.join(sorted(unknown))}")
    for name, wanted_kind in get_type_hints(kind).items():
        if not _is_of(values[name], wanted_kind):
            _refuse(path, f"{name} of {called} is {values[name]!r}")
    return kind(*(values[name] for name in kind._fields))


def _finite(text: str) -> float:
    """The number; ValueError for NaN, Infinity and what is rounded to it, as 1e999."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not a finite number")
    return value


def _is_of(value: object, kind: type) -> bool:
    """Whether it is a text, a count (int) or a finite number (float)."""
    if kind is int:
        return type(value) is int and 0 <= value < 2**63
    if kind is float:
        return (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and abs(value) <= sys.float_info.max
        )
    return type(value) is kind


def _is_dict_of(values: object, kind: type) -> bool:
    return isinstance(values, dict) and all(_is_of(value, kind) for value in values.values())


def _refuse(path: Path, reason: str) -> NoReturn:
    raise ValueError(
        f"{path} is not a report that Report.save wrote: {reason}. Curves and the files of others "
        "cannot be loaded"
    )
