"""Says so when steps take far longer than those before them."""

import logging
import math
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

_LOGGER = logging.getLogger("fastadv")
_FACTOR = 10
_LEAST = 0.5  # seconds: below, nobody waits for it
_IN_A_ROW = 3  # one or two are the garbage collector, a swapped page, a kernel's first launch
_ENOUGH = 8  # steps that make a median
_REMEMBERED = 101


class Moment(NamedTuple):
    """When, and how many times something had been compiled by then."""

    seconds: float
    compiled: int


def frames_compiled() -> int:
    """How many times torch.compile has begun to compile in this process."""
    dynamo = sys.modules.get("torch._dynamo.utils")  # nobody imports it before a first compilation
    counters = getattr(dynamo, "counters", None)
    return 0 if counters is None else counters["frames"]["total"]


class Watchdog:
    """One line in the log "fastadv" when three steps in a row take ten times the median of the
    last hundred; steps in which something is compiled do not count.

    clock: seconds. compiled: a count that grows with every compilation.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.perf_counter,
        compiled: Callable[[], int] = frames_compiled,
    ) -> None:
        self._clock, self._compiled = clock, compiled
        self._excused = 0
        self._slow: list[float] = []  # those in a row
        self._recent: deque[float] = deque(maxlen=_REMEMBERED)

    def moment(self) -> Moment:
        return Moment(self._clock(), self._compiled() + self._excused)

    def excuse(self) -> None:
        """The step under way is one that compiles or records."""
        self._excused += 1

    def note(self, since: Moment, *, slots: int, steps: int = 1) -> Moment:
        """That `steps` steps of `slots` slots have been made since then; now."""
        now = self.moment()
        if now.compiled != since.compiled:
            self._slow.clear()  # what comes after is no longer in a row with what was before
            return now
        seconds = (now.seconds - since.seconds) / max(steps, 1)
        if self._is_slow(seconds):
            self._slow.append(seconds)
            if len(self._slow) == _IN_A_ROW:  # once, until steps are as before
                self._speak(slots)
        else:
            self._slow.clear()
        self._recent.append(seconds)
        return now

    def _is_slow(self, seconds: float) -> bool:
        is_judged = seconds > _LEAST and len(self._recent) >= _ENOUGH
        return is_judged and seconds > _FACTOR * self._median

    @property
    def _median(self) -> float:
        return sorted(self._recent)[len(self._recent) // 2]

    def _speak(self, slots: int) -> None:
        least, median = min(self._slow), self._median
        _LOGGER.warning(
            "%d steps in a row of %d slots took %.1f s or more, %.0f times the median of %.3f s: "
            "does another process hold the device, or is memory short?",
            _IN_A_ROW,
            slots,
            least,
            least / median if median else math.inf,
            median,
        )
