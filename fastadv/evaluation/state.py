"""Results so far, what they are results of, and the checkpoint that holds them."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from fastadv.attacks.call.result import Cost, Stage
from fastadv.ensemble.cascade import Progress
from fastadv.evaluation.examples import Pixels, first
from fastadv.evaluation.in_use import check_backend
from fastadv.execution import Execution
from fastadv.files import save_tensors

_FORMAT = 8  # raised when the fields of State, Block or Unfinished change
COLUMNS = {
    "ids": torch.int64,
    "fingerprints": torch.int64,
    "clean_correct": torch.bool,
    "success": torch.bool,
    "step": torch.int64,
    "distance": torch.float64,
    "broken_by": torch.int64,
    "clean_score": torch.float64,  # NaN without a score
    "score": torch.float64,
}
_IDENTITY = {
    "attack": "attack",
    "model": "model (the SHA-256 of its structure and weights)",
    "version": "version of fastadv",
    "search": "way to run the search",
    "n": "number of samples",
}
_OF_PROGRESS = tuple(f.name for f in fields(Progress) if f.name not in ("x_adv", "stages", "inset"))


@dataclass
class Block:
    """Results of samples that were attacked together, and what they cost.

    columns: (n,) each, on the CPU; "ids" are positions in the data, ascending, "fingerprints" those
    of `fastadv.evaluation.checkpoint`. rank, world: of the process that finished them. stages: of
    an ensemble, as dictionaries. cost: a `Cost`, as a dictionary. warnings: samples for each code
    of `AttackWarning`.
    """

    columns: dict[str, torch.Tensor]
    rank: int = 0
    world: int = 1
    forwards: int = 0
    backwards: int = 0
    seconds: float = 0.0
    warnings: dict[str, int] = field(default_factory=dict)
    stages: list[dict[str, Any]] = field(default_factory=list)
    cost: dict[str, float] = field(default_factory=lambda: Cost()._asdict())

    @property
    def ids(self) -> torch.Tensor:
        return self.columns["ids"]


@dataclass
class Unfinished:
    """What the attacks of an ensemble that are done found in a block whose others are not.

    ids, fingerprints: as of a `Block`. columns: those of `Progress` but x_adv, in whose place
    distance is kept: a row of numbers a sample, not an image (but where Square ended, if
    version="fast" is to go on from there). examples: the first that fell.
    """

    ids: torch.Tensor
    fingerprints: torch.Tensor
    seconds: float
    warnings: dict[str, int]
    stages: list[dict[str, Any]]
    columns: dict[str, torch.Tensor]
    examples: list[Pixels] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        progress: Progress,
        distance: torch.Tensor,
        *,
        ids: torch.Tensor,
        fingerprints: torch.Tensor,
        seconds: float,
        warnings: dict[str, int],
        examples: list[Pixels],
    ) -> "Unfinished":
        columns = {name: getattr(progress, name).cpu().clone() for name in _OF_PROGRESS}
        columns["distance"] = distance.cpu()
        stages = [stage._asdict() for stage in progress.stages]
        return cls(ids, fingerprints, seconds, warnings, stages, columns, examples)

    @property
    def clean_correct(self) -> torch.Tensor:
        return self.columns["broken_by"] != -2

    @property
    def fallen(self) -> torch.Tensor:
        """(n,) bool: broken by an attack that is done."""
        return self.columns["broken_by"] >= 0

    def progress(self, x: torch.Tensor) -> Progress:
        """To go on from; x_adv is x, also where a sample fell: see `with_distances`."""
        columns = {name: self.columns[name].to(x.device).clone() for name in _OF_PROGRESS}
        stages = [Stage(**stage) for stage in self.stages]
        x_adv = x.clone(memory_format=torch.preserve_format)
        return Progress(**columns, x_adv=x_adv, stages=stages)  # type: ignore[arg-type]

    def with_distances(self, distance: torch.Tensor) -> torch.Tensor:
        """`distance` of samples, for those that had fallen as it was then; on the CPU."""
        return torch.where(self.fallen, self.columns["distance"], distance.cpu())


@dataclass
class State:
    """What one file holds: of a process, or, with `total`, of a finished evaluation.

    search: what of `Execution` results depend on, in words. backend: what ops run with. n: samples
    of the data, where that is certain before they are read. total: samples of the data, which are
    all in `blocks`. inset: by how much entries at a bound are moved inside to be differentiated,
    once that is found. execution: all of `Execution`, which a run with "auto" goes on with.
    unfinished: blocks that were begun; a file keeps one, until it is finished, also where another
    process goes on with it. fell_back: ops whose reference ran, as their kernel failed. date: when
    it was begun. examples: the first of the samples in `blocks` that attacks broke.
    """

    attack: str
    model: str
    version: str
    search: str
    backend: str
    n: int | None
    total: int | None = None
    inset: float = 0.0
    execution: dict[str, Any] = field(default_factory=lambda: asdict(Execution()))
    blocks: list[Block] = field(default_factory=list)
    unfinished: list[Unfinished] = field(default_factory=list)
    fell_back: list[str] = field(default_factory=list)
    date: str = ""
    examples: list[Pixels] = field(default_factory=list)

    def begin(self, part: Unfinished) -> None:
        """Keep `part`, in place of an earlier one of the same samples."""
        self._drop(part.ids)
        self.unfinished.append(part)

    def finish(self, block: Block, examples: Sequence[Pixels] = ()) -> None:
        self._drop(block.ids)
        self.blocks.append(block)
        self.examples = first([*self.examples, *examples])

    def _drop(self, ids: torch.Tensor) -> None:
        self.unfinished = [part for part in self.unfinished if not torch.equal(part.ids, ids)]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Rows of all blocks in one tensor a column: thousands of small ones take their time."""
        sums = [{**vars(block), "columns": len(block.ids)} for block in self.blocks]
        columns = {
            name: torch.cat([torch.empty(0, dtype=kind), *(b.columns[name] for b in self.blocks)])
            for name, kind in COLUMNS.items()
        }
        unfinished = [{**vars(part), "examples": _plain(part.examples)} for part in self.unfinished]
        more = {"format": _FORMAT, "columns": columns, "blocks": sums, "unfinished": unfinished}
        save_tensors(path, {**vars(self), **more, "examples": _plain(self.examples)})

    def restored(self, path: str | os.PathLike[str]) -> "State":
        """The state in the file `path`; ValueError if it is no checkpoint, or of something else.

        The data are compared as they are read, and then the predictions.
        """
        path = Path(path)
        saved = _read(path)
        for name, what in _IDENTITY.items():
            mine, theirs = getattr(self, name), saved[name]
            if mine != theirs:
                raise ValueError(
                    f"checkpoint {path} belongs to another {what}: {_short(theirs)}, not "
                    f"{_short(mine)}. Choose another path, or delete it to start again"
                )
        check_backend(path, saved["backend"], self.backend)
        sizes = [sums["columns"] for sums in saved["blocks"]]
        parts = {name: column.split(sizes) for name, column in saved.pop("columns").items()}
        del saved["format"]
        saved["blocks"] = [
            Block(**{**sums, "columns": {name: parts[name][k].clone() for name in COLUMNS}})
            for k, sums in enumerate(saved["blocks"])
        ]
        saved["unfinished"] = [
            Unfinished(**{**part, "examples": _examples(part)}) for part in saved["unfinished"]
        ]
        return State(**{**saved, "examples": _examples(saved)})


def execution_in(path: Path) -> Execution:
    """What the evaluation in the file `path` runs with; ValueError if it is no checkpoint."""
    return Execution(**_read(path)["execution"])


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


def _read(path: Path) -> dict[str, Any]:
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or foreign file raises nearly anything
        raise ValueError(
            f"{path} is not a checkpoint of fastadv.evaluate: {type(error).__name__}. Choose "
            "another path, or delete it to start again"
        ) from error
    expected = {"format", "columns", *State.__dataclass_fields__}
    is_ours = isinstance(saved, dict) and set(saved) == expected and saved["format"] == _FORMAT
    if is_ours:
        is_ours = all(
            set(part["columns"]) == {*_OF_PROGRESS, "distance"} for part in saved["unfinished"]
        )
    if not is_ours:
        raise ValueError(
            f"{path} is not a checkpoint of this version of fastadv.evaluate. Choose another "
            "path, or delete it to start again"
        )
    return saved


def _plain(examples: Sequence[Pixels]) -> list[dict[str, Any]]:
    return [one._asdict() for one in examples]


def _examples(saved: dict[str, Any]) -> list[Pixels]:
    return [Pixels(**one) for one in saved["examples"]]


def _short(value: object) -> str:
    text = repr(value) if not isinstance(value, str) else value
    return text if len(text) != 64 else text[:12]  # a SHA-256
