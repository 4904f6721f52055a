"""A contest of candidates within a time: a first look at many, then rounds among the fastest."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, overload

import torch

from fastadv import memory
from fastadv.execution import Execution
from fastadv.tuning.candidates import EXACT, Shadows
from fastadv.tuning.passes import Use, clock_of, pass_of

_SURVEYED = 0.6  # of the time, at most: the rest is for the rounds
_WORSE = 1.25  # times the best so far: larger batches are not tried after two such
_LONG = 0.1  # seconds of a pass that is not made twice at first sight
_FINALISTS = 8
_NEAR = 1.4  # times the best at first sight: what may still win
_ROUNDS = 11
_FIRST_CUT = 3  # rounds, after which what is far behind is dropped, and again after each
_BEHIND = 1.06  # times the best median
_TRIAL = 4e-3  # seconds that a trial takes at least: passes of small batches are repeated


@dataclass(eq=False)
class Entry:
    """A candidate. first: seconds a sample at first sight, by use; times: those of the rounds it
    took part in, by their number."""

    execution: Execution
    runs: dict[Use, Callable[[], None]]
    first: dict[Use, float] = field(default_factory=dict)
    times: dict[Use, dict[int, float]] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return self.execution.batch_size or 1

    @property
    def rounds(self) -> int:
        return min((len(rounds) for rounds in self.times.values()), default=0)

    def seconds(self, use: Use) -> float:
        """A sample, the median of its rounds."""
        rounds = self.times.get(use)
        return statistics.median(rounds.values()) if rounds else self.first[use]


class Contest:
    """Times candidates at the samples x, repeated to fill batches. Must be used inside
    `isolated(model)`.

    until: of the wall clock (`time.perf_counter`); a pass is begun only if it is expected to end
    before. notes: what failed, and why.
    """

    def __init__(
        self,
        shadows: Shadows,
        x: torch.Tensor,
        extra: tuple[torch.Tensor, ...],
        uses: Sequence[Use],
        *,
        until: float,
    ) -> None:
        self.entries: dict[Execution, Entry] = {}
        self.notes: list[str] = []
        self.shadows = shadows
        self.until = until
        self._x, self._extra, self._uses = x, extra, tuple(uses)
        self._clock, self.clock_name = clock_of(x.device)
        self._is_warm = False
        self._too_large: dict[Execution, int] = {}  # of a variant, where memory ran out
        began = time.perf_counter()
        self._survey_ends = began + _SURVEYED * (until - began)

    def extend(self) -> None:
        """What is surveyed from now on may take the time of the rounds."""
        self._survey_ends = self.until

    def survey(self, variant: Execution, sizes: Sequence[int], start: int | None = None) -> None:
        """Look at sizes of a variant, ascending from `start`, then descending."""
        first = 0 if start is None else sizes.index(start)
        self._walk(variant, sizes[first:])
        self._walk(variant, sizes[:first][::-1])

    def _walk(self, variant: Execution, sizes: Sequence[int]) -> None:
        missed = 0
        for size in sizes:
            best = min((self.score(e) for e in self._of(variant)), default=None)
            entry = self.look(replace(variant, batch_size=size))
            if entry is None:
                return
            missed = missed + 1 if best is not None and self.score(entry) > best else 0
            if best is not None and (missed >= 2 or self.score(entry) > _WORSE * best):
                return

    @overload
    def look(self, execution: Execution, *, must: Literal[True]) -> Entry: ...

    @overload
    def look(self, execution: Execution, *, whatever: bool = False) -> Entry | None: ...

    def look(
        self, execution: Execution, *, whatever: bool = False, must: bool = False
    ) -> Entry | None:
        """An entry after a pass of each kind, or two of short ones; None if it cannot be had, or
        not in time. whatever: also if it takes long. must: what it raises is raised, too."""
        if execution in self.entries:
            return self.entries[execution]
        variant = replace(execution, batch_size=None)
        rows = execution.batch_size or 1
        if rows >= self._too_large.get(variant, rows + 1):
            return None
        if not (must or whatever or self._fits(variant, rows, self._survey_ends)):
            return None
        model = self.shadows.of(variant)
        if model is None:
            return None
        try:
            x, extra = self._batch(rows, channels_last=variant.channels_last)
            entry = Entry(execution, {u: pass_of(u, model, x, extra) for u in self._uses})
            if not self._is_warm:  # the first passes of a process load and compile
                self._is_warm = True
                for run in entry.runs.values():
                    run()
            for use in self._uses:
                entry.first[use] = self._timed(entry.runs[use]) / rows
                if entry.first[use] * rows < _LONG:
                    again = self._timed(entry.runs[use]) / rows
                    entry.first[use] = min(entry.first[use], again)
        except Exception as error:  # whatever the user's model does at this batch
            if must:
                raise
            if memory.is_out_of_memory(error):
                memory.free_cached(self._x.device)
                self._too_large[variant] = rows
            told = " ".join(f"{type(error).__name__}: {error}".split())[:120]
            self.notes.append(f"no batches of {rows}: {told}")
            return None
        self.entries[execution] = entry
        return entry

    def rounds(self, default: Entry) -> None:
        """The fastest at first sight and `default` take turns; who falls behind is dropped."""
        ranked = sorted(self.entries.values(), key=self.score)
        limit = _NEAR * self.score(ranked[0])
        field_ = [e for e in ranked if self.score(e) <= limit][:_FINALISTS]
        if default not in field_:
            field_.append(default)
        for number in range(_ROUNDS):
            turn = number % len(field_)
            for entry in field_[turn:] + field_[:turn]:
                expected = sum(entry.seconds(use) for use in self._uses) * entry.rows
                if time.perf_counter() + expected > self.until:
                    return
                for use in self._uses:
                    self._trial(entry, use, number)
            if number + 1 >= _FIRST_CUT:
                best = min(self.score(entry) for entry in field_)
                near = [e for e in field_ if e is default or self.score(e) <= _BEHIND * best]
                field_ = near
            if field_ == [default]:
                return

    def score(self, entry: Entry, default: Entry | None = None) -> float:
        """Seconds a sample, each use in relation to the plain model's least at first sight; with a
        default, in relation to it, the median over rounds that both took part in."""
        if default is None:
            plain = [e for e in self._of(EXACT) if len(e.first) == len(self._uses)] or [entry]
            least = {use: min(e.first[use] for e in plain) for use in self._uses}
            return statistics.fmean(entry.seconds(use) / least[use] for use in self._uses)
        shared = set.intersection(
            *(set(e.times.get(use, {})) for e in (entry, default) for use in self._uses)
        )
        if not shared:
            ratios = [entry.seconds(use) / default.seconds(use) for use in self._uses]
            return statistics.fmean(ratios)
        return statistics.median(
            statistics.fmean(entry.times[u][k] / default.times[u][k] for u in self._uses)
            for k in shared
        )

    def _of(self, variant: Execution) -> list[Entry]:
        return [
            e for e in self.entries.values() if replace(e.execution, batch_size=None) == variant
        ]

    def _trial(self, entry: Entry, use: Use, number: int) -> None:
        passes = max(1, round(_TRIAL / (entry.first[use] * entry.rows + 1e-9)))
        run = entry.runs[use]
        began = self._clock()
        for _ in range(passes):
            run()
        spent = self._clock() - began
        entry.times.setdefault(use, {})[number] = spent / (passes * entry.rows)

    def _timed(self, run: Callable[[], None]) -> float:
        began = self._clock()
        run()
        return max(self._clock() - began, 1e-9)

    def _fits(
        self, variant: Execution, rows: int, until: float, sample: float | None = None
    ) -> bool:
        """Whether passes over `rows` samples are expected to end before `until`."""
        if sample is None:
            known = self._of(variant) or self._of(EXACT)
            if not known:
                return time.perf_counter() < until
            nearest = min(known, key=lambda e: abs(e.rows - rows))
            sample = 2 * sum(nearest.first.values())
        return time.perf_counter() + sample * rows < until

    def _batch(
        self, rows: int, *, channels_last: bool
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """The first `rows` samples, again from the first where there are no more."""
        index = torch.arange(rows, device=self._x.device) % len(self._x)
        x, *extra = (part.index_select(0, index) for part in (self._x, *self._extra))
        if channels_last and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        return x, tuple(extra)
