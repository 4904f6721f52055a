"""The ledger and the queue: many items at once are what they were one after another."""

import sys

import numpy as np
import pytest
import torch

import fastadv
from fastadv.engine import continuous
from fastadv.engine.ledger import Ledger
from fastadv.engine.queue import Queue
from fastadv.kernels import slots as columns


class _OneByOne:
    """The rule, item by item."""

    def __init__(self, n: int, settles: bool) -> None:
        self.settles = settles
        self.x_adv, self.step, self.loss = [-1.0] * n, [-1] * n, [-np.inf] * n
        self.faults, self.entered = [0] * n, [set() for _ in range(n)]
        self.fooled_by: list[int | None] = [None] * n
        self.best: list[int] = [2**31 - 1] * n

    def record(self, sample, item, step, fault, loss, value) -> None:
        loss = -np.inf if np.isnan(loss) else loss
        self.entered[sample].add(item)
        self.faults[sample] |= fault
        fooled = self.fooled_by[sample]
        if self.settles and step >= 0:
            if fooled is not None and item >= fooled:
                return
            self.fooled_by[sample] = item
        elif fooled is not None or (loss, -item) <= (self.loss[sample], -self.best[sample]):
            return
        else:
            self.loss[sample], self.best[sample] = loss, item
        self.step[sample], self.x_adv[sample] = step, value

    def is_settled(self, sample, item) -> bool:
        fooled = self.fooled_by[sample]
        return (fooled is not None and fooled < item) or item in self.entered[sample]


def _flags(steps: np.ndarray, faults: np.ndarray) -> np.ndarray:
    flags = np.zeros((len(steps), columns.WIDTH), dtype=np.int32)
    flags[:, columns.SUCCESS_STEP], flags[:, columns.FAULT] = steps, faults
    return flags


@pytest.mark.parametrize("settles", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_items_that_finish_together_are_entered_as_one_by_one(seed, settles):
    rng = np.random.default_rng(seed)
    n, items = 12, 5
    ledger, rule = Ledger(torch.full((n, 1), -1.0), settles=settles), _OneByOne(n, settles)
    left = rng.permutation(n * items)
    while len(left):
        now, left = np.split(left, [rng.integers(1, 14)])
        samples, numbers = now % n, (now // n).astype(np.int32)
        steps = np.where(rng.random(len(now)) < 0.3, rng.integers(0, 9, len(now)), -1)
        faults = rng.integers(0, 4, len(now))
        losses = rng.choice([0.0, 1.0, 2.0, np.nan, -np.inf], len(now))
        values = torch.arange(40.0)[:, None] + len(left) * 100
        rows = rng.permutation(40)[: len(now)]
        ledger.record(samples, numbers, _flags(steps, faults), losses, values, rows)
        for k, sample in enumerate(samples):
            value = float(values[rows[k], 0])
            rule.record(sample, numbers[k], steps[k], faults[k], losses[k], value)
        assert ledger.step.tolist() == rule.step and ledger.loss.tolist() == rule.loss
        assert ledger.faults.tolist() == rule.faults
        assert ledger.x_adv[:, 0].tolist() == rule.x_adv
        assert ledger.entered.tolist() == [len(one) for one in rule.entered]
        assert ledger.has_fallen.tolist() == [one is not None for one in rule.fooled_by]
        everything = np.arange(n)
        for item in range(items + 2):
            settled = ledger.are_settled(everything, item).tolist()
            assert settled == [rule.is_settled(sample, item) for sample in range(n)]


def test_what_is_forgotten_is_open_again():
    ledger = Ledger(torch.zeros(3, 1), settles=True)
    samples, items = np.array([0, 1, 2]), np.array([0, 0, 2])
    ledger.record(
        samples, items, _flags(np.array([3, -1, 4]), np.ones(3)), np.ones(3), torch.ones(3, 1)
    )
    ledger.forget(np.array([0, 2]))
    assert ledger.step.tolist() == [-1, -1, -1] and ledger.entered.tolist() == [0, 1, 0]
    assert ledger.are_settled(np.arange(3), 0).tolist() == [False, True, False]
    assert not ledger.are_settled(np.arange(3), 2).any()


@pytest.mark.parametrize("n", [3, 40, 700])
def test_a_queue_gives_open_items_in_order_by_what_is_known_when_they_are_taken(n):
    rng = np.random.default_rng(n)
    pending, items = np.sort(rng.permutation(2 * n)[:n]), 3
    ledger = Ledger(torch.zeros(2 * n, 1), settles=True)
    queue = Queue(pending, items, ledger)

    def one_by_one():
        for item in range(items):
            for sample in pending:
                if not ledger.are_settled(np.array([sample]), item)[0]:
                    yield int(sample), item

    expected = one_by_one()
    assert queue.count() == n * items
    while True:
        most = int(rng.integers(0, 30))
        samples, numbers = queue.take(most)
        got = list(zip(samples.tolist(), numbers.tolist(), strict=True))
        assert got == [pair for _, pair in zip(range(most), expected, strict=False)]
        if most and not got:
            break
        some = rng.permutation(len(samples))[: len(samples) // 2]  # fall, others are left open
        flags = _flags(np.zeros(len(some)), np.zeros(len(some)))
        values = torch.zeros(len(some), 1)
        ledger.record(samples[some], numbers[some], flags, np.zeros(len(some)), values)
    assert queue.count() == 0 and queue.take(5)[0].tolist() == []


def _calls_a_look(slots: int, monkeypatch: pytest.MonkeyPatch) -> float:
    """Of Python and C functions, in the first looks at as many slots, of which half have fallen."""
    counts, looks = 0, 0

    def count(frame, event, arg) -> None:
        nonlocal counts
        counts += event in ("call", "c_call")

    def counted(name: str):
        whole = getattr(continuous._Run, name)

        def run(self, *args):
            nonlocal looks
            if len(self.busy) < slots:
                return whole(self, *args)
            looks += 1
            sys.setprofile(count)
            try:
                return whole(self, *args)
            finally:
                sys.setprofile(None)

        return run

    generator = torch.Generator().manual_seed(0)
    x = torch.rand(8 * slots, 1, 4, 4, generator=generator)
    linear = torch.nn.Linear(16, 3)
    with torch.no_grad():  # of others nothing may fall, and a look has less to do
        linear.weight.uniform_(-0.25, 0.25, generator=generator)
        linear.bias.zero_()
    model = torch.nn.Sequential(torch.nn.Flatten(), linear)
    y = model(x).argmax(1)
    with monkeypatch.context() as patch:
        for name in ("_harvest", "_refill"):
            patch.setattr(continuous._Run, name, counted(name))
        execution = fastadv.Execution(batch_size=slots)
        fastadv.pgd(fastadv.Linf(0.02), steps=12).run(model, x, y, execution=execution)
    return counts / looks


def test_a_look_at_512_slots_takes_as_few_calls_as_one_at_64(monkeypatch):
    few, many = _calls_a_look(64, monkeypatch), _calls_a_look(512, monkeypatch)
    assert many < 1.2 * few
