"""Continuous batching: the slot of a finished sample is refilled from a queue of work items."""

from collections.abc import Iterator

import numpy as np
import torch

from fastadv.engine.algorithm import SlotAlgorithm
from fastadv.engine.ledger import Ledger
from fastadv.engine.plain import read
from fastadv.engine.work import Work
from fastadv.kernels import slots as columns


def run_continuous(
    algorithm: SlotAlgorithm, work: Work, pending: np.ndarray, ledger: Ledger, batch_size: int
) -> None:
    """Attack the `pending` samples of `work` in `batch_size` slots and enter them in `ledger`.

    Items are queued item-major: the first restart or target of every sample, then the second;
    those of a sample that an earlier one has fooled are dropped, in their slots too. So a few
    samples fill the slots with several of their targets. When the queue is empty the batch shrinks
    by halves.
    """
    if len(pending) == 0:
        return
    _Run(algorithm, work, pending, ledger, batch_size).finish()


class _Run:
    def __init__(
        self, algorithm: SlotAlgorithm, work: Work, pending: np.ndarray, ledger: Ledger,
        batch_size: int,
    ) -> None:  # fmt: skip
        self.algorithm, self.work, self.ledger = algorithm, work, ledger
        self.queue = self._queue(pending)
        batch = min(batch_size, len(pending) * algorithm.items)
        self.state = algorithm.allocate(work.take(self._device(pending[:1])), batch)
        self.samples = np.zeros(batch, dtype=np.int64)
        self.items = np.zeros(batch, dtype=np.int32)
        self.age = np.zeros(batch, dtype=np.int64)  # steps since the slot was filled
        self.busy = np.zeros(batch, dtype=bool)
        self._refill()

    def finish(self) -> None:
        while self.busy.any():
            rounds = min(
                self.algorithm.stride, int((self.algorithm.steps - self.age[self.busy]).min())
            )
            for _ in range(rounds):
                self.algorithm.step(self.state)
            self.age += rounds
            self._harvest()
            self._refill()
            self._shrink()

    def _queue(self, pending: np.ndarray) -> Iterator[tuple[int, int]]:
        for item in range(self.algorithm.items):
            for sample in pending:
                if not self.ledger.is_settled(sample, item):
                    yield sample, item

    def _harvest(self) -> None:
        """Enter the finished slots and free them, and those that no longer matter."""
        iterates, losses = self.algorithm.outcome(self.state)
        flags, host_losses = read(self.state.slots, losses)
        inactive = flags[:, columns.ACTIVE] == 0
        at_end = self.busy & ~inactive & (self.age >= self.algorithm.steps)
        stopped = self.busy & inactive
        for rows, is_at_end in ((np.flatnonzero(stopped), False), (np.flatnonzero(at_end), True)):
            if len(rows) == 0:
                continue
            chosen, their_flags, their_losses = iterates, flags[rows], host_losses[rows]
            index = self._device(rows)
            if is_at_end and self.algorithm.needs_last:
                last = self.state.take(index)
                self.algorithm.evaluate(last)
                chosen, losses = self.algorithm.outcome(last)
                their_flags, their_losses = read(last.slots, losses)
            else:
                chosen = iterates.index_select(0, index)
            self.ledger.record(
                self.samples[rows], self.items[rows], their_flags, their_losses, chosen
            )
        self.busy &= ~(stopped | at_end)
        for row in np.flatnonzero(self.busy):
            if self.ledger.is_settled(self.samples[row], self.items[row]):
                self.busy[row] = False

    def _refill(self) -> None:
        free = np.flatnonzero(~self.busy)
        rows = []
        for row in free:
            work_item = next(self.queue, None)
            if work_item is None:
                break
            self.samples[row], self.items[row] = work_item
            self.age[row] = 0
            self.busy[row] = True
            rows.append(row)
        if rows:
            work = self.work.take(self._device(self.samples[rows]))
            where = None if len(rows) == len(self.state) else self._device(np.array(rows))
            items = torch.as_tensor(self.items[rows], device=self.work.x.device)
            self.algorithm.start(self.state, where, work, items)

    def _shrink(self) -> None:
        """Drop idle slots once they are half of the batch: the queue is empty when slots idle."""
        rows = np.flatnonzero(self.busy)
        if 0 < len(rows) <= len(self.busy) // 2:
            self.state = self.state.take(self._device(rows))
            self.samples, self.items = self.samples[rows], self.items[rows]
            self.age, self.busy = self.age[rows], self.busy[rows]

    def _device(self, indices: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(indices, device=self.work.x.device)
