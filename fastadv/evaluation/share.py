"""What is done of an evaluation, by any number of processes, and who does the rest."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch

from fastadv.attacks.call.result import Cost
from fastadv.evaluation.examples import Pixels, first
from fastadv.evaluation.processes import Place
from fastadv.evaluation.state import COLUMNS, Block, State, Unfinished, added, added_counts


class Begun(NamedTuple):
    """An unfinished block: its samples and how many attacks it has behind it."""

    ids: torch.Tensor
    stages: int


class Found(NamedTuple):
    """What a process was asked to do, and what it read in all files that it sees."""

    model: str
    attack: str
    n: int | None
    total: int | None
    blocks: list[Block]
    begun: list[Begun]
    inset: float = 0.0
    backend: str = ""
    date: str = ""
    examples: Sequence[Pixels] = ()


def found_in(asked: State, states: Iterable[State]) -> Found:
    """asked: without results; states: of the files."""
    states = list(states)
    totals = [state.total for state in states if state.total is not None]
    return Found(
        asked.model,
        asked.attack,
        asked.n,
        max(totals, default=None),
        [block for state in states for block in state.blocks],
        [Begun(part.ids, len(part.stages)) for state in states for part in state.unfinished],
        max((state.inset for state in states), default=0.0),
        asked.backend,
        min([asked.date, *(state.date for state in states)]),
        first(one for state in states for one in state.examples),
    )


class Share:
    """Which samples are this process's, as all processes work it out from what all have found.

    Of the finished samples and of the missing ones, each counted in the order of the data, it takes
    every `world`-th from number `rank` on: the former to see that they are the same, the latter to
    attack. An unfinished block is taken on whole, by a process that has its file. blocks: all that
    are finished. begun: what this process goes on with. total: samples of the data, if all were
    finished. inset, date, examples: as in `State`. Raises ValueError if the processes were given
    other models, attacks or data.
    """

    def __init__(self, place: Place, founds: Sequence[Found]) -> None:
        _check_agreement(founds)
        self.place = place
        self.total: int | None = max((f.total for f in founds if f.total is not None), default=None)
        self.inset: float = max(f.inset for f in founds)
        self.date: str = min(f.date for f in founds)
        self.examples: list[Pixels] = first(one for f in founds for one in f.examples)
        self.blocks: list[Block] = disjoint(block for found in founds for block in found.blocks)
        rows = joined_columns(self.blocks)
        self._rows = rows
        ours = _shared_out([found.begun for found in founds], rows["ids"])
        self.begun: list[Begun] = ours[place.rank]
        begun = [one.ids for group in ours for one in group]
        self._known = torch.cat([rows["ids"], *begun]).sort().values
        self._begun = torch.cat([torch.empty(0, dtype=torch.int64), *(b.ids for b in self.begun)])

    def takes(self, ids: torch.Tensor) -> torch.Tensor:
        """Which of the samples `ids` are this process's, to compare, go on with or attack."""
        rank, world = self.place
        order = torch.searchsorted(self._rows["ids"], ids)
        known_before = torch.searchsorted(self._known, ids)
        is_new = ~torch.isin(ids, self._known)
        number = torch.where(is_new, ids - known_before, order)
        shared = is_new | self.are_finished(ids)
        return (shared & (number % world == rank)) | self.are_begun(ids)

    def are_finished(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.isin(ids, self._rows["ids"])

    def are_begun(self, ids: torch.Tensor) -> torch.Tensor:
        """Of a block that this process goes on with."""
        return torch.isin(ids, self._begun)

    def finished(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """Columns of the finished samples `ids`."""
        rows = torch.searchsorted(self._rows["ids"], ids)
        return {name: column[rows] for name, column in self._rows.items()}

    def finished_of_this_process(self) -> dict[str, torch.Tensor]:
        """Columns of those that it compares."""
        return {name: c[self.place.rank :: self.place.world] for name, c in self._rows.items()}

    @property
    def end(self) -> int:
        """The data have at least this many samples."""
        return int(self._known[-1]) + 1 if len(self._known) else 0


def _shared_out(begun: Sequence[Sequence[Begun]], finished: torch.Tensor) -> list[list[Begun]]:
    """For each process the unfinished blocks it goes on with.

    begun: what each process has read. Of a block that is there more than once it is the one with
    most attacks behind it; each goes to the process with the fewest so far of those that have it.
    """
    holders: dict[tuple[tuple[int, ...], int], list[int]] = {}
    for rank, group in enumerate(begun):
        for one in group:
            ranks = holders.setdefault((tuple(one.ids.tolist()), one.stages), [])
            if rank not in ranks:
                ranks.append(rank)
    shares: list[list[Begun]] = [[] for _ in begun]
    taken = set(finished.tolist())
    for (ids, stages), ranks in sorted(holders.items(), key=lambda item: (-item[0][1], item[0][0])):
        if taken.isdisjoint(ids):
            taken.update(ids)
            rank = min(ranks, key=lambda rank: (len(shares[rank]), rank))
            shares[rank].append(Begun(torch.tensor(ids), stages))
    return shares


def mine_of(share: Share, states: Iterable[State]) -> list[Unfinished]:
    """What was kept of the unfinished blocks that this process goes on with."""
    parts = [part for state in states for part in state.unfinished]
    return [
        next(p for p in parts if torch.equal(p.ids, one.ids) and len(p.stages) == one.stages)
        for one in share.begun
    ]


def disjoint(blocks: Iterable[Block]) -> list[Block]:
    """In the order of the data; of blocks that share samples, as in a copied file, one."""
    ordered = sorted(blocks, key=lambda b: (int(b.ids[0]), -len(b.ids), b.world, b.rank, b.seconds))
    taken: set[int] = set()
    found = []
    for block in ordered:
        ids = block.ids.tolist()
        if taken.isdisjoint(ids):
            taken.update(ids)
            found.append(block)
    return found


def joined_columns(blocks: Sequence[Block]) -> dict[str, torch.Tensor]:
    """The rows of all blocks, in the order of the data."""
    columns = {
        name: torch.cat([torch.empty(0, dtype=kind), *(b.columns[name] for b in blocks)])
        for name, kind in COLUMNS.items()
    }
    order = columns["ids"].argsort()
    return {name: column[order] for name, column in columns.items()}


def joined_sums(blocks: Sequence[Block]) -> dict[str, Any]:
    """forwards, backwards, seconds, warnings, cost and stages of all blocks.

    seconds: those of the slowest of the processes that ran at once, one number of processes after
    another; all else is added up.
    """
    warnings: dict[str, int] = {}
    stages: list[dict[str, Any]] = []
    for block in blocks:
        warnings = added_counts(warnings, block.warnings)
        stages = added(stages, block.stages)
    for index, stage in enumerate(stages):
        for name in (name for name in stage if name.endswith("seconds")):
            stage[name] = _joined([(b, b.stages[index][name]) for b in blocks if b.stages], name)
    return {
        "forwards": sum(block.forwards for block in blocks),
        "backwards": sum(block.backwards for block in blocks),
        "seconds": _of_the_slowest([(block, block.seconds) for block in blocks]),
        "warnings": warnings,
        "cost": {name: _joined([(b, b.cost[name]) for b in blocks], name) for name in Cost._fields},
        "stages": stages,
    }


def _joined(values: Sequence[tuple[Block, float]], name: str) -> float:
    return _of_the_slowest(values) if name.endswith("seconds") else sum(v for _, v in values)


def _of_the_slowest(times: Iterable[tuple[Block, float]]) -> float:
    sums: dict[int, dict[int, float]] = {}
    for block, seconds in times:
        ranks = sums.setdefault(block.world, {})
        ranks[block.rank] = ranks.get(block.rank, 0.0) + seconds
    return sum(max(ranks.values()) for ranks in sums.values())


def _check_agreement(founds: Sequence[Found]) -> None:
    for name in ("model", "attack", "backend"):
        if len({getattr(found, name) for found in founds}) > 1:
            raise ValueError(f"every process must get the same {name}; they got different ones")
    lengths = [found.n for found in founds]
    if len(set(lengths)) > 1:
        raise ValueError(f"every process must get the same data; they got {lengths} samples")
