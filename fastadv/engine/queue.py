"""What is still to be attacked, in the order in which it is."""

import numpy as np

from fastadv.engine.ledger import Ledger

_BLOCK = 256  # samples looked at together: most of a queue is open, and few are wanted


class Queue:
    """Items of the `pending` samples: the first of every sample, then the second.

    Left out is what cannot change a result any more by the time that it is taken.
    """

    def __init__(self, pending: np.ndarray, items: int, ledger: Ledger) -> None:
        self._pending, self._items, self._ledger = pending, items, ledger
        self._item = self._next = 0  # the next to be taken: of which item, which sample

    def count(self) -> int:
        """How many are left, by what is known now."""
        left = 0
        for item in range(self._item, self._items):
            samples = self._pending[self._next if item == self._item else 0 :]
            left += int((~self._ledger.are_settled(samples, item)).sum())
        return left

    def take(self, most: int) -> tuple[np.ndarray, np.ndarray]:
        """(samples, items) of the next ones, at most `most`."""
        found: list[np.ndarray] = []
        items: list[np.ndarray] = []
        while most > 0 and self._item < self._items:
            block = self._pending[self._next : self._next + max(_BLOCK, 2 * most)]
            is_open = np.flatnonzero(~self._ledger.are_settled(block, self._item))[:most]
            found.append(block[is_open])
            items.append(np.full(len(is_open), self._item))
            most -= len(is_open)
            self._next += len(block) if most else int(is_open[-1]) + 1
            if self._next >= len(self._pending):
                self._item, self._next = self._item + 1, 0
        if not found:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        return np.concatenate(found), np.concatenate(items)
