"""Says so when a step takes far longer than those before it."""

import logging
from collections import deque

_LOGGER = logging.getLogger("fastadv")
_FACTOR = 10
_LEAST = 0.5  # seconds: below, nobody waits for it
_ENOUGH = 8  # steps that make a median
_REMEMBERED = 101


class Watchdog:
    """One line in the log "fastadv" for a step of ten times the median of the last hundred."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=_REMEMBERED)

    def note(self, seconds: float, *, slots: int) -> None:
        if seconds > _LEAST and len(self._recent) >= _ENOUGH:
            median = sorted(self._recent)[len(self._recent) // 2]
            if seconds > _FACTOR * median:
                _LOGGER.warning(
                    "a step of %d slots took %.1f s, %.0f times the median of %.3f s: does another "
                    "process hold the device, or is memory short?",
                    slots,
                    seconds,
                    seconds / median,
                    median,
                )
        self._recent.append(seconds)
