"""Races: two lanes at one place, one of them writing, and no barrier between them."""

import math
from dataclasses import dataclass

import numpy as np

_MANY = 1 << 19  # words in the log before it is looked through


class EmulationError(Exception):
    """The kernel does what a device may not survive, or what has no fixed result."""


class Race(EmulationError):
    """The result depends on which lane comes first."""


@dataclass
class _Access:
    """size bytes at `place` by `lanes`; written: (words, which of them change), or None."""

    instruction: int
    place: np.ndarray
    size: int
    lanes: np.ndarray
    epoch: np.ndarray
    written: tuple[np.ndarray, np.ndarray] | None

    def granule(self) -> int:
        return self.size if self.written is None else math.gcd(self.size, self.written[0].itemsize)


class RaceLog:
    """The accesses of a group of CTAs since their last barriers.

    Equal values written by two lanes to one place are no race: of tensors they are counted in
    `same_values`. Between CTAs, which nothing orders, they are one.
    """

    def __init__(self, threads: int, grid: int, names: list[str]) -> None:
        """names: of the instructions, for messages."""
        self.threads, self.grid, self.names = threads, grid, names
        self.instruction = 0  # the one under way, which the machine sets
        self.same_values = 0
        self.begin(np.arange(1))

    def begin(self, ctas: np.ndarray) -> None:
        """Another group of CTAs runs; what earlier ones touched in tensors is remembered."""
        self.ctas = ctas
        self.epochs = np.zeros(len(ctas), np.int64)
        self.logs: dict[bool, list[_Access]] = {False: [], True: []}
        self.words = 0

    def add(self, place, size: int, lanes, written, *, shared: bool = False) -> None:
        epoch = self.epochs[lanes // self.threads]
        access = _Access(self.instruction, place, size, lanes, epoch, written)
        self.logs[shared].append(access)
        self.words += len(lanes) * size // access.granule()

    def barrier(self, ctas) -> None:
        """`ctas` (indices in the group, or a slice) have passed a barrier."""
        self.epochs[ctas] += 1
        if self.words > _MANY:
            self._check(finished=False)

    def end(self) -> None:
        self._check(finished=True)

    def between_ctas(self, region, at, size: int, lanes, writes: bool) -> None:
        """No other CTA may touch what one writes."""
        if self.grid == 1:
            return
        if region.writer is None:
            region.writer = np.full(region.data.size // region.item + 1, -1, np.int32)
            region.reader = region.writer.copy()
        cta = np.broadcast_to(
            self.ctas[lanes // self.threads, None], (len(lanes), max(1, size // region.item))
        )
        index = at[:, None] // region.item + np.arange(cta.shape[1])
        self._demand_one(region.writer, index, cta, "writes" if writes else "reads")
        if writes:
            self._demand_one(region.reader, index, cta, "writes what another reads, or")
            region.writer[index] = cta
            self._demand_one(region.writer, index, cta, "writes")
            return
        before = region.reader[index]
        after = np.where((before == -1) | (before == cta), cta, np.int32(-2))
        region.reader[index] = after
        region.reader[index[region.reader[index] != after]] = -2  # several in one instruction

    @staticmethod
    def _demand_one(owner, index, cta, what: str) -> None:
        others = (owner[index] != -1) & (owner[index] != cta)
        if others.any():
            who, whose = int(cta[others][0]), int(owner[index][others][0])
            raise Race(f"CTA {who} {what} what CTA {whose if whose >= 0 else 'of several'} touches")

    def _check(self, finished: bool) -> None:
        for shared, log in self.logs.items():
            if any(access.written is not None for access in log):
                self._look_through(log, shared)
            self.logs[shared] = [] if finished else self._still_open(log)
        self.words = 0

    def _still_open(self, log):
        """Of lanes whose CTA has not reached its next barrier."""
        kept = []
        for a in log:
            here = a.epoch == self.epochs[a.lanes // self.threads]
            if here.any():
                written = a.written and (a.written[0][here], a.written[1][here])
                kept.append(
                    _Access(
                        a.instruction, a.place[here], a.size, a.lanes[here], a.epoch[here], written
                    )
                )
        return kept

    def _look_through(self, log: list[_Access], shared: bool) -> None:
        granule = math.gcd(*(access.granule() for access in log))
        table = _Table(log, granule, self.threads)
        bad = table.racing()
        if not shared:  # where the compiler itself writes a value from all lanes that have it
            self.same_values += table.same_values
        if len(bad):
            where = "shared memory" if shared else "a tensor"
            what = table.describe(int(bad[0]), self.names)
            raise Race(f"no barrier between accesses to {where}: {what}")


class _Table:
    """Every word of every access, sorted by (place, CTA, epoch)."""

    def __init__(self, log: list[_Access], granule: int, threads: int) -> None:
        self.same_values = 0
        columns = [self._rows(access, granule, threads) for access in log]
        keys, lanes, writes, changes, values, instructions = (
            np.concatenate(column) for column in zip(*columns, strict=True)
        )
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        self.starts = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]])
        self.lanes, self.writes, self.changes, self.values, self.instructions = (
            column[order] for column in (lanes, writes, changes, values, instructions)
        )

    @staticmethod
    def _rows(access: _Access, granule: int, threads: int):
        count = access.size // granule
        shape = (len(access.lanes), count)
        place = access.place[:, None] // granule + np.arange(count)
        # one number for (place, CTA, epoch)
        cta = access.lanes // threads
        key = (place << 18) | ((cta << 12) + access.epoch % 4096)[:, None]
        lanes = np.broadcast_to(access.lanes[:, None], shape)
        changes = values = np.zeros(shape, np.int64)
        if access.written is not None:
            word = access.written[0].itemsize
            values = np.ascontiguousarray(access.written[0]).view(f"i{granule}").astype(np.int64)
            changes = np.repeat(access.written[1], word // granule, axis=1)
        writes = np.full(shape, access.written is not None)
        which = np.full(shape, access.instruction)
        return [
            a.reshape(-1) for a in (key, lanes, writes, changes.astype(np.bool_), values, which)
        ]

    def racing(self) -> np.ndarray:
        """The groups in which another order of lanes would give other results."""
        several = self._differ(self.writes, self.lanes)
        conflicting = several & self._differ(self.writes, self.values)
        self.same_values = int((several & ~conflicting).sum())
        reads = ~self.writes
        changed = np.logical_or.reduceat(self.changes, self.starts)
        read = np.logical_or.reduceat(reads, self.starts)
        mixed = changed & read & self._differ(self.changes | reads, self.lanes)
        return np.flatnonzero(conflicting | mixed)

    def _differ(self, which: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Whether a group's `values` differ among the rows that `which` selects."""
        least = np.where(which, values, np.iinfo(np.int64).max)
        most = np.where(which, values, np.iinfo(np.int64).min)
        return np.minimum.reduceat(least, self.starts) < np.maximum.reduceat(most, self.starts)

    def describe(self, group: int, names: list[str]) -> str:
        """A write, and what another lane does at its place."""
        stop = self.starts[group + 1] if group + 1 < len(self.starts) else len(self.lanes)
        rows = np.arange(self.starts[group], stop)
        write = rows[self.writes[rows]][0]
        other = rows[self.lanes[rows] != self.lanes[write]][0]
        first, second = sorted((write, other))
        return " and ".join(
            f"lane {self.lanes[r]} {'writes' if self.writes[r] else 'reads'} by"
            f" {names[self.instructions[r]]}"
            for r in (first, second)
        )
