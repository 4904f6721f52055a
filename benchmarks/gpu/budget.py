"""Who may use how many of the minutes: shares of the whole, and what others left over."""

import time
from collections.abc import Callable, Mapping

_FOR_THE_TABLE = 0.03
_LEAST = 3.0  # seconds: a process that imports torch takes as long


class Budget:
    """Seconds of each section in turn. shares: section to its share, in the order of the run.

    A section may use what is left until the end of its own share, the unused time of those before
    it included; one that overran takes from the next. clock: seconds, monotonic.
    """

    def __init__(
        self,
        seconds: float,
        shares: Mapping[str, float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._began = clock()
        usable = seconds * (1 - _FOR_THE_TABLE)
        whole = sum(shares.values())
        self._ends: dict[str, float] = {}
        end = 0.0
        for name, share in shares.items():
            end += usable * share / whole
            self._ends[name] = end

    def grant(self, name: str) -> float:
        """Seconds that the section may take from now on; 0 where it is too late to begin."""
        left = self._ends[name] - self.elapsed
        return left if left >= _LEAST else 0.0

    @property
    def elapsed(self) -> float:
        return self._clock() - self._began
