"""Reports read back from their JSON files."""

import json
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, NoReturn

import torch

from fastadv.attacks.call.result import Cost, Stage

_COLUMNS = {
    "clean_correct": torch.bool,
    "robust": torch.bool,
    "success": torch.bool,
    "step": torch.int64,
    "distance": torch.float64,
    "broken_by": torch.int64,
}
_PLAIN = {torch.bool: (bool,), torch.int64: (int,), torch.float64: (float, int)}
_TEXT = ("model", "attack", "threat", "norm", "search")
_COUNTS = ("forwards", "backwards")
_NUMBERS = ("eps", "steps", "restarts", "seed", "seconds")


def read(path: Path, report: type) -> dict[str, Any]:
    """The fields of the dataclass `report` in the file; ValueError if it is not of one."""
    if path.suffix != ".json":
        raise ValueError(
            f"path must end in .json: of the files of a report it alone holds every sample; got "
            f"{path}"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("samples"), dict):
        _refuse(path, "it has no samples")
    samples = content["samples"]
    given = {f.name: content[f.name] for f in fields(report) if f.name in content}
    given.update(_columns(path, samples))
    for field in fields(report):
        if field.name not in given and field.default is MISSING:
            _refuse(path, f"it has no {field.name}")
    for name in _TEXT:
        if not isinstance(given.get(name, ""), str):
            _refuse(path, f"{name} is not a text")
    for name in _COUNTS:
        if type(given[name]) is not int:
            _refuse(path, f"{name} is not an integer")
    for name in _NUMBERS:
        if type(given[name]) not in (int, float, type(None)):
            _refuse(path, f"{name} is not a number")
    for name, value in (("warnings", int), ("environment", str)):
        if not _is_dict_of(given[name], value):
            _refuse(path, f"{name} is not what a report has")
    given["cost"] = _tuple_of(Cost, path, content.get("cost", {}))
    stages = content.get("stages", [])
    if not isinstance(stages, list):
        _refuse(path, "stages is not a list")
    given["stages"] = tuple(_tuple_of(Stage, path, stage) for stage in stages)
    return given


def _columns(path: Path, samples: dict[str, Any]) -> dict[str, torch.Tensor]:
    columns, length = {}, None
    for name, kind in _COLUMNS.items():
        values = samples.get(name)
        if values is None and name == "broken_by":  # of ensembles alone
            continue
        if not isinstance(values, list) or any(type(v) not in _PLAIN[kind] for v in values):
            _refuse(path, f"samples.{name} is not a list of {kind} values")
        if length not in (None, len(values)) or not values:
            _refuse(path, f"samples.{name} has {len(values)} values, not {length or 'one or more'}")
        length = len(values)
        columns[name] = torch.tensor(values, dtype=kind)
    return columns


def _tuple_of(kind: Any, path: Path, values: object) -> Any:
    if not isinstance(values, dict):
        _refuse(path, f"a {kind.__name__.lower()} of it is not a table")
    known = {name: values[name] for name in kind._fields if name in values}
    for name, value in known.items():
        wanted = (str,) if name in ("name", "attack") else (int, float)
        if type(value) not in wanted:
            _refuse(path, f"{name} of a {kind.__name__.lower()} is {value!r}")
    try:
        return kind(**known)
    except TypeError as error:
        _refuse(path, str(error))


def _is_dict_of(values: object, kind: type) -> bool:
    return isinstance(values, dict) and all(type(value) is kind for value in values.values())


def _refuse(path: Path, reason: str) -> NoReturn:
    raise ValueError(
        f"{path} is not a report that Report.save wrote: {reason}. Curves and the files of others "
        "cannot be loaded"
    )
