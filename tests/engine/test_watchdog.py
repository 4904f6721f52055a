"""The watchdog on a clock of the tests' own: three slow steps in a row, none of which compiles."""

import logging

import pytest
import torch
from torch import nn
from toy_models import mixed_problem, threat_of

import fastadv
from fastadv.engine import stepping
from fastadv.engine.watchdog import Watchdog, frames_compiled


class Watched:
    """A watchdog whose steps take as long as a test says."""

    def __init__(self):
        self.now, self.compiled = 0.0, 0
        self.dog = Watchdog(clock=lambda: self.now, compiled=lambda: self.compiled)

    def step(self, seconds, *, steps=1, compiles=False, excused=False):
        began = self.dog.moment()
        self.now += seconds
        self.compiled += compiles
        if excused:
            self.dog.excuse()
        self.dog.note(began, slots=64, steps=steps)


@pytest.fixture
def watched(caplog):
    caplog.set_level(logging.WARNING, logger="fastadv")
    watched = Watched()
    for _ in range(8):
        watched.step(0.1)
    return watched


def test_three_slow_steps_in_a_row_are_said_once(watched, caplog):
    for seconds in (1.2, 1.5):
        watched.step(seconds)
        assert caplog.messages == []
    watched.step(3.0)
    (said,) = caplog.messages
    assert said.startswith("3 steps in a row of 64 slots took 1.2 s or more, 12 times the median")
    for _ in range(4):
        watched.step(1.2)
    assert len(caplog.messages) == 1


def test_a_step_as_before_ends_the_row(watched, caplog):
    for _ in range(4):
        watched.step(1.2)
        watched.step(1.2)
        watched.step(0.9)  # less than ten times the median
    assert caplog.messages == []


def test_a_new_row_is_said_again(watched, caplog):
    for seconds in (1.2, 1.2, 1.2, *[0.1] * 8, 1.2, 1.2, 1.2):
        watched.step(seconds)
    assert len(caplog.messages) == 2


def test_nothing_is_said_before_there_is_a_median_or_of_times_nobody_waits_for(caplog):
    caplog.set_level(logging.WARNING, logger="fastadv")
    early, short = Watched(), Watched()
    for seconds in (0.1, 0.1, 9.0, 9.0, 9.0):
        early.step(seconds)
    for seconds in (*[0.01] * 20, 0.4, 0.4, 0.4):
        short.step(seconds)
    assert caplog.messages == []


def test_the_time_of_several_steps_is_shared_out(watched, caplog):
    for _ in range(3):
        watched.step(1.2, steps=4)
    assert caplog.messages == []
    for _ in range(3):
        watched.step(4.8, steps=4)
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("how", ["compiles", "excused"])
def test_nothing_is_said_while_something_compiles(watched, caplog, how):
    for _ in range(6):
        watched.step(60.0, **{how: True})
    assert caplog.messages == []
    # the median is as before: such steps are not remembered
    for _ in range(3):
        watched.step(1.2)
    assert "12 times the median of 0.100 s" in caplog.messages[0]


def test_a_compilation_ends_the_row(watched, caplog):
    for compiles in (False, False, True, False):
        watched.step(2.0, compiles=compiles)
    assert caplog.records == []


def test_a_compilation_by_torch_is_counted():
    model = torch.compile(nn.Linear(2, 2), backend="eager")
    before = frames_compiled()
    model(torch.zeros(1, 2))
    during = frames_compiled()
    model(torch.zeros(1, 2))
    assert during > before and frames_compiled() == during


class Stalling(nn.Module):
    """Three passes, late, take far longer than the others."""

    def __init__(self, model, pass_time):
        super().__init__()
        self.model, self.pass_time, self.calls = model, pass_time, 0

    def forward(self, x):
        self.calls += 1
        self.pass_time(0.7 if 14 <= self.calls < 17 else 0.002)
        return self.model(x)


@pytest.mark.parametrize("batching", ["continuous", "plain"])
def test_slow_steps_are_seen_in_every_schedule(caplog, monkeypatch, batching):
    caplog.set_level(logging.WARNING, logger="fastadv")
    now = [0.0]

    def pass_time(seconds):
        now[0] += seconds

    monkeypatch.setattr(stepping, "Watchdog", lambda: Watchdog(clock=lambda: now[0]))
    problem = mixed_problem(20)
    fastadv.pgd(threat_of("linf", 0.01), steps=18).run(
        Stalling(problem.model, pass_time),
        problem.x,
        problem.y,
        execution=fastadv.Execution(batching=batching),
    )
    assert len(caplog.messages) == 1 and "times the median" in caplog.messages[0]
