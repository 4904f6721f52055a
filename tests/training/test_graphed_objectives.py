"""D: recorded steps take y of any dtype and shape."""

import pytest
import torch
from graphed_pair import Pair
from objective_problems import TASKS, THREAT, seeded
from training_problems import METHODS

from fastadv import objectives, training
from fastadv.training import AWP


@pytest.mark.parametrize(
    ("task", "name"),
    [("segmentation", "PGDAT"), ("multilabel", "FastAT"), ("binary", "FreeAT")],
)
def test_d_replayed_steps_by_an_objective_equal_the_eager_loop_bit_for_bit(tape, task, name):
    objective, make, _, _ = TASKS[task]
    pair = Pair(lambda: METHODS[name](THREAT, loss=objective), net=seeded(make))
    pair.train(TASKS[task].batches(6))
    assert (tape.captured, pair.run.replays) == (1, 3)


def test_d_labels_of_another_dtype_are_held_as_they_are(tape):
    """In integers 0.3 would be 0."""
    task = TASKS["multilabel"]
    make = lambda: training.FastAT(THREAT, loss=task.objective, modifiers=[AWP()])  # noqa: E731
    pair = Pair(make, net=seeded(task.net))
    data = task.batches(5)
    pair.train(data)
    pair.train([(x, 0.3 + 0.4 * y.to(torch.float64)) for x, y in data])
    assert tape.captured == 2 and pair.run.replays == 5


def test_d_named_labels_are_held_in_int64_whatever_their_dtype(tape):
    pair = Pair(lambda: training.FastAT(THREAT), net=seeded(lambda: TASKS["multilabel"].net()))
    data = [(x, y.sum(1) % 3) for x, y in TASKS["multilabel"].batches(6)]
    pair.train([(x, y.to((torch.int32, torch.int64)[i % 2])) for i, (x, y) in enumerate(data)])
    assert tape.captured == 1 and pair.run.replays == 3


def test_d_another_objective_is_recorded_anew(tape):
    task = TASKS["binary"]
    pair = Pair(lambda: training.FastAT(THREAT, loss=task.objective), net=seeded(task.net))
    pair.train(task.batches(4))
    for step in (pair.step, pair.eager_step):
        step._loss_setting = objectives.regression(tolerance=0.1)
    pair.train(task.batches(4, seed=3))
    assert tape.captured == 2
