"""Wall and process time of the same calls, and the ratios between any two providers of a case."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal, get_args

from benchmarks.harness.schema import Row

Shown = Literal["process", "wall"]
BARE = "bare passes"
_BESIDE_FASTADV = ("torchattacks", "foolbox", "art", BARE)


class BothClocks:
    """A clock for `harness.Timing`: the seconds `shown` of a call, while both are kept by call.

    Process time is that of all threads of the process, and leaves out what other processes take.
    """

    def __init__(self, shown: Shown) -> None:
        self.shown: Shown = shown
        self._seconds: dict[int, list[dict[Shown, float]]] = {}

    def __call__(self, run: Callable[[], object]) -> float:
        wall, process = time.perf_counter(), time.process_time()
        run()
        spent: dict[Shown, float] = {
            "process": time.process_time() - process,
            "wall": time.perf_counter() - wall,
        }
        self._seconds.setdefault(id(run), []).append(spent)
        return spent[self.shown]

    def rows(self, rows: list[Row], providers: Mapping[str, Callable[[], object]]) -> list[Row]:
        """The rows with what else is known of their calls in `extra`: the medians of both clocks in
        ms; of fastadv's over each other library's and the bare passes, in the clock shown, the
        median of ratios within a round, and the ms beyond the bare passes."""
        return [replace(row, extra=row.extra | self._extra(row, providers)) for row in rows]

    def _extra(self, row: Row, providers: Mapping[str, Callable[[], object]]) -> dict[str, float]:
        own = self._seconds[id(providers[row.provider])]
        clocks: tuple[Shown, ...] = get_args(Shown)
        extra = {
            f"{clock}_ms": _short(1e3 * statistics.median(one[clock] for one in own))
            for clock in clocks
        }
        if not row.provider.startswith("fastadv"):
            return extra
        mine = [one[self.shown] for one in own]
        for name in _BESIDE_FASTADV:
            others = self._seconds.get(id(providers.get(name)), [])
            if others:
                theirs = [one[self.shown] for one in others]
                pairs = list(zip(theirs, mine, strict=True))
                extra[f"{name} / this"] = _short(statistics.median(a / b for a, b in pairs))
                if name == BARE:
                    beyond = statistics.median(b - a for a, b in pairs)
                    extra["ms_beyond_bare"] = _short(1e3 * beyond)
        return extra


def _short(value: float) -> float:
    return float(f"{value:.4g}")
