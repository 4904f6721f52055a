"""Continuous batching: the slot of a finished sample is refilled from a queue of work items."""

import numpy as np
import torch

from fastadv.engine import looks
from fastadv.engine.ledger import Ledger
from fastadv.engine.pace import Pace
from fastadv.engine.plain import Confirm, Inspect, go_on, read
from fastadv.engine.queue import Queue
from fastadv.engine.stepping import Stepper
from fastadv.engine.watchdog import Moment
from fastadv.engine.work import Work
from fastadv.kernels import slots as columns


def run_continuous(
    stepper: Stepper,
    work: Work,
    pending: np.ndarray,
    ledger: Ledger,
    batch_size: int,
    confirm: Confirm | None,
    inspect: Inspect | None,
) -> None:
    """Attack the `pending` samples of `work` in `batch_size` slots and enter them in `ledger`.

    Items are queued item-major: the first restart or target of every sample, then the second;
    those of a sample that an earlier one has fooled are dropped, in their slots too. So a few
    samples fill the slots with several of their targets. When the queue is empty the batch shrinks
    by halves. confirm, inspect: as for `run_plain`.
    """
    run = _Run(stepper, work, pending, ledger, batch_size, confirm, inspect)
    run.finish()


class _Run:
    def __init__(
        self,
        stepper: Stepper,
        work: Work,
        pending: np.ndarray,
        ledger: Ledger,
        batch_size: int,
        confirm: Confirm | None,
        inspect: Inspect | None,
    ) -> None:
        self.stepper, self.algorithm = stepper, stepper.algorithm
        self.work, self.ledger, self.confirm, self.inspect = work, ledger, confirm, inspect
        self.pace = Pace(self.algorithm.stride, work.x.device)
        self.look = False  # at the last gradient of a slot too
        self.pending = pending
        self.queue = Queue(pending, self.algorithm.items, ledger)
        count = self.queue.count()
        batch = stepper.shape(count, batch_size) if count else 0
        self.samples = np.zeros(batch, dtype=np.int64)
        self.items = np.zeros(batch, dtype=np.int32)
        self.age = np.zeros(batch, dtype=np.int64)  # steps since the slot was filled
        self.busy = np.zeros(batch, dtype=bool)
        if count:
            self.state = stepper.allocate(work.take(self._device(pending[:1])), batch)
            self._fill()

    def finish(self) -> None:
        while self.busy.any():
            busy = int(self.busy.sum())
            rounds = min(self.pace.stride, self.algorithm.steps - int(self.age[self.busy].max()))
            began = self.stepper.moment()
            is_last = bool((self.age[self.busy] + rounds >= self.algorithm.steps).any())
            self.stepper.advance(self.state, rounds, look=self.look and is_last)
            self.age += rounds
            self._harvest(began, rounds)
            self.pace.note(freed=busy - int(self.busy.sum()), busy=busy)
            self._tell()
            self._refill()
            self._shrink()

    def _tell(self) -> None:
        shares = self.age[self.busy] / self.algorithm.steps
        looks.tell(
            self.ledger,
            self.pending,
            items=self.algorithm.items,
            samples=self.samples[self.busy],
            shares=shares,
        )

    def _fill(self) -> None:
        """Load all slots, those beyond the queue with its items again: idle, but not undefined."""
        rows = self._assign()
        count, batch = len(rows), len(self.state)
        again = np.resize(rows, batch)
        self._load(None, self.samples[again], self.items[again])
        self.state.slots[count:, columns.ACTIVE] = 0

    def _harvest(self, began: Moment, rounds: int) -> None:
        """Enter the finished slots and free them, and those that no longer matter."""
        iterates, losses = self.algorithm.outcome(self.state)
        flags, host_losses = read(self.state.slots, losses)
        if iterates.device.type != "cpu":
            self.stepper.note(began, self.state, rounds)
        if self.inspect is not None:
            busy = np.flatnonzero(self.busy)
            faults = flags[:, columns.FAULT]
            self.look = self.inspect(iterates, faults, busy, self.samples[busy])
        if self.confirm is not None and self._deny(iterates, flags):
            iterates, losses = self.algorithm.outcome(self.state)
            flags, host_losses = read(self.state.slots, losses)
        inactive = flags[:, columns.ACTIVE] == 0
        at_end = self.busy & ~inactive & (self.age >= self.algorithm.steps)
        stopped = self.busy & inactive
        for rows, is_at_end in ((np.flatnonzero(stopped), False), (np.flatnonzero(at_end), True)):
            if len(rows) == 0:
                continue
            samples, items = self.samples[rows], self.items[rows]
            if is_at_end and self.algorithm.needs_last:
                last = self.state.take(self._device(rows))
                self.algorithm.evaluate(last)
                chosen, losses = self.algorithm.outcome(last)
                self.ledger.record(samples, items, *read(last.slots, losses), chosen)
            else:
                self.ledger.record(samples, items, flags[rows], host_losses[rows], iterates, rows)
        self.busy &= ~(stopped | at_end)
        self.busy &= ~self.ledger.are_settled(self.samples, self.items)

    def _deny(self, iterates: torch.Tensor, flags: np.ndarray) -> bool:
        """Attack the slots further whose success the user's model denies; whether there are any."""
        assert self.confirm is not None
        is_over = flags[:, columns.ACTIVE] == 0
        claimed = np.flatnonzero(self.busy & is_over & (flags[:, columns.SUCCESS_STEP] >= 0))
        if len(claimed) == 0:
            return False
        found = iterates.index_select(0, self._device(claimed))
        denied = claimed[~self.confirm(self.samples[claimed], found)]
        if len(denied) == 0:
            return False
        part = self.state.take(self._device(denied))
        self.age[denied] = go_on(self.algorithm, part)[:, columns.STEP]
        self.state.put(self._device(denied), part)
        return True

    def _refill(self) -> None:
        rows = self._assign()
        if len(rows):
            self._load(rows, self.samples[rows], self.items[rows])

    def _assign(self) -> np.ndarray:
        """Give free slots the next items of the queue; which slots got one."""
        free = np.flatnonzero(~self.busy)
        samples, items = self.queue.take(len(free))
        rows = free[: len(samples)]
        self.samples[rows], self.items[rows] = samples, items
        self.age[rows] = 0
        self.busy[rows] = True
        return rows

    def _load(self, rows: np.ndarray | None, samples: np.ndarray, items: np.ndarray) -> None:
        given = [samples, items] if rows is None else [samples, items, rows]
        numbers = self._device(np.stack(given))  # one copy to the device: each waits
        work = self.work.take(numbers[0])
        where = None if rows is None else numbers[2]
        self.algorithm.start(self.state, where, work, numbers[1].int())

    def _shrink(self) -> None:
        """Drop idle slots once they are half of the batch, and every one of an algorithm that is
        looked at after each step, unless steps are recorded: the queue is empty when slots idle."""
        rows, is_tight = np.flatnonzero(self.busy), self.algorithm.stride == 1
        most = len(self.busy) - 1 if is_tight and not self.stepper.records else len(self.busy) // 2
        if 0 < len(rows) <= most:
            self.state = self.stepper.shrunk(self.state, self._device(rows))
            kept = np.resize(rows, len(self.state))
            self.samples, self.items, self.age = (
                column[kept] for column in (self.samples, self.items, self.age)
            )
            self.busy = np.arange(len(kept)) < len(rows)

    def _device(self, indices: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(indices, device=self.work.x.device)
