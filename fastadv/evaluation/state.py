"""Results so far, what they are results of, and the checkpoint that holds them."""

import io
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn

import torch

from fastadv.attacks.result import Stage
from fastadv.ensemble.cascade import Progress
from fastadv.evaluation.checkpoint import write_atomically

_FORMAT = 2  # raised when the fields of State or Unfinished change
_COLUMNS = {
    "clean_correct": torch.bool,
    "success": torch.bool,
    "step": torch.int64,
    "distance": torch.float64,
    "broken_by": torch.int64,
}
_FINGERPRINT = {
    "attack": "attack",
    "model": "model (the SHA-256 of its structure and weights)",
    "version": "version of fastadv",
    "n": "number of samples",
    "rank": "process",
    "world": "number of processes",
}
_OF_PROGRESS = tuple(f.name for f in fields(Progress) if f.name not in ("x_adv", "stages"))


@dataclass
class Unfinished:
    """What the attacks of an ensemble that are done found in a block whose others are not.

    count, digest: of the block's samples, the digest also of those before it. columns: those of
    `Progress` but x_adv, in whose place distance is kept: a row of numbers a sample, not an image
    (but where Square ended, if version="fast" is to go on from there).
    """

    count: int
    digest: str
    seconds: float
    warnings: dict[str, int]
    stages: list[dict[str, Any]]
    columns: dict[str, torch.Tensor]

    @classmethod
    def of(
        cls, progress: Progress, distance: torch.Tensor, *, digest: str, seconds: float,
        warnings: dict[str, int],
    ) -> "Unfinished":  # fmt: skip
        columns = {name: getattr(progress, name).cpu().clone() for name in _OF_PROGRESS}
        columns["distance"] = distance.cpu()
        stages = [stage._asdict() for stage in progress.stages]
        return cls(len(distance), digest, seconds, warnings, stages, columns)

    def progress(self, x: torch.Tensor) -> Progress:
        """To go on from; x_adv is x, also where a sample fell: see `with_distances`."""
        columns = {name: self.columns[name].to(x.device).clone() for name in _OF_PROGRESS}
        stages = [Stage(**stage) for stage in self.stages]
        x_adv = x.clone(memory_format=torch.preserve_format)
        return Progress(**columns, x_adv=x_adv, stages=stages)

    def with_distances(self, distance: torch.Tensor) -> torch.Tensor:
        """`distance` of samples, for those that had fallen as it was then; on the CPU."""
        fallen = self.columns["broken_by"] >= 0
        return torch.where(fallen, self.columns["distance"], distance.cpu())


@dataclass
class State:
    """Results of the first `done` samples of a process, in order, and their running sums.

    rank, world: the process takes the samples rank, rank + world, ... columns: (done,) each, on the
    CPU. digest: of the data of these samples. stages: of an ensemble, as dictionaries. warnings:
    samples for each code of `AttackWarning`. n: of all processes, where known.
    """

    attack: str
    model: str
    version: str
    n: int | None
    rank: int = 0
    world: int = 1
    digest: str = ""
    finished: bool = False
    forwards: int = 0
    backwards: int = 0
    seconds: float = 0.0
    warnings: dict[str, int] = field(default_factory=dict)
    stages: list[dict[str, Any]] = field(default_factory=list)
    unfinished: Unfinished | None = None
    columns: dict[str, torch.Tensor] = field(
        default_factory=lambda: {k: torch.empty(0, dtype=v) for k, v in _COLUMNS.items()}
    )

    @property
    def done(self) -> int:
        return len(self.columns["success"])

    def extend(self, **block: torch.Tensor) -> None:
        for name, kind in _COLUMNS.items():
            self.columns[name] = torch.cat([self.columns[name], block[name].cpu().to(kind)])

    def save(self, path: str | os.PathLike[str]) -> None:
        content = io.BytesIO()
        torch.save({"format": _FORMAT, **asdict(self)}, content)
        write_atomically(path, content.getvalue())

    def restored(self, path: str | os.PathLike[str]) -> "State":
        """The state in `path`, or this one if there is no file; ValueError if it is another's,
        FileNotFoundError if there is not even a folder for it.

        The data are compared later, as they are read, and then the predictions: see `check_data`
        and `refuse_model`.
        """
        path = Path(path)
        if not path.parent.is_dir():
            raise FileNotFoundError(f"checkpoint {path}: there is no folder {path.parent}")
        if not path.exists():
            return self
        saved = _read(path)
        for name, what in _FINGERPRINT.items():
            mine, theirs = getattr(self, name), saved[name]
            if mine != theirs:
                raise ValueError(
                    f"checkpoint {path} belongs to another {what}: {_short(theirs)}, not "
                    f"{_short(mine)}. Choose another path, or delete it to start again"
                )
        del saved["format"]
        if saved["unfinished"] is not None:
            saved["unfinished"] = Unfinished(**saved["unfinished"])
        return State(**saved)

    def refuse_model(self, path: str | os.PathLike[str]) -> NoReturn:
        raise ValueError(
            f"checkpoint {path} belongs to another model: the one here classifies its first clean "
            "samples otherwise. Choose another path, or delete it to start again"
        )

    def check_data(self, digest: str, path: str | os.PathLike[str], expected: str) -> None:
        """Raises ValueError unless the data read again are those of the checkpoint."""
        if digest != expected:
            count = self.done + (self.unfinished.count if expected != self.digest else 0)  # type: ignore[union-attr]
            raise ValueError(
                f"checkpoint {path} belongs to other data: its {count} samples are not the "
                "first ones here, in this order (a loader that shuffles, or files that changed). "
                "Choose another path, or delete it to start again"
            )


def added(stages: list[dict[str, Any]], more: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Stage by stage, the sums of the numbers; either may be empty."""
    if not stages or not more:
        return [dict(stage) for stage in (stages or more)]
    return [
        {k: v if isinstance(v, str) else v + new[k] for k, v in old.items()}
        for old, new in zip(stages, more, strict=True)
    ]


def added_counts(counts: dict[str, int], more: dict[str, int]) -> dict[str, int]:
    return {code: counts.get(code, 0) + more.get(code, 0) for code in sorted({*counts, *more})}


def joined(states: Sequence[State]) -> State:
    """The results of all processes in the order of the data.

    seconds: of the slowest; the passes are added up. Raises ValueError if the processes had other
    models or attacks, or unequal shares, so that they read different data.
    """
    first = states[0]
    if len(states) == 1:
        return first
    for name in ("model", "attack"):
        if len({getattr(state, name) for state in states}) > 1:
            raise ValueError(f"every process must get the same {name}; they got different ones")
    total = sum(state.done for state in states)
    whole = State(first.attack, first.model, first.version, first.n, finished=first.finished)
    for name, kind in _COLUMNS.items():
        whole.columns[name] = torch.empty(total, dtype=kind)
    for state in states:
        if state.done != len(range(state.rank, total, state.world)):
            counts = [other.done for other in states]
            raise ValueError(
                f"every process must get the same data; of {total} samples in all they attacked "
                f"{counts}"
            )
        for name, column in state.columns.items():
            whole.columns[name][state.rank :: state.world] = column
        whole.forwards += state.forwards
        whole.backwards += state.backwards
        whole.warnings = added_counts(whole.warnings, state.warnings)
        whole.stages = added(whole.stages, state.stages)
    for index, stage in enumerate(whole.stages):
        stage["seconds"] = max(s.stages[index]["seconds"] for s in states if s.stages)
    whole.seconds = max(state.seconds for state in states)
    return whole


def _read(path: Path) -> dict[str, Any]:
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or foreign file raises nearly anything
        raise ValueError(
            f"{path} is not a checkpoint of fastadv.evaluate: {type(error).__name__}. Choose "
            "another path, or delete it to start again"
        ) from error
    expected = {"format", *State.__dataclass_fields__}
    is_ours = isinstance(saved, dict) and set(saved) == expected and saved["format"] == _FORMAT
    if is_ours and saved["unfinished"] is not None:
        is_ours = set(saved["unfinished"]["columns"]) == {*_OF_PROGRESS, "distance"}
    if not is_ours:
        raise ValueError(
            f"{path} is not a checkpoint of this version of fastadv.evaluate. Choose another "
            "path, or delete it to start again"
        )
    return saved


def _short(value: object) -> str:
    text = repr(value) if not isinstance(value, str) else value
    return text if len(text) != 64 else text[:12]  # a SHA-256
