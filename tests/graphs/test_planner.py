"""When a step is warmed, recorded, replayed, refused and forgotten."""

import gc
import warnings
import weakref

import pytest
import torch
from tape import Tape

from fastadv.diagnostics import ExecutionWarning
from fastadv.graphs.planner import StepGraphs


class Fake:
    """A backend that notes what is asked of it; `fails` is raised by captures."""

    def __init__(self, fails: BaseException | None = None) -> None:
        self.log: list[str] = []
        self.fails = fails

    def warm(self, function):
        self.log.append("warm")
        function()

    def capture(self, function):
        function()
        if self.fails is not None:
            self.log.append("failed")
            raise self.fails
        self.log.append("capture")
        return lambda: self.log.append("replay")

    def release(self):
        self.log.append("release")


class Counted:
    def __init__(self) -> None:
        self.forwards = self.backwards = 0

    def read(self):
        return self.forwards, self.backwards

    def write(self, values):
        self.forwards, self.backwards = values

    def step(self) -> None:
        self.forwards += 2
        self.backwards += 1


def test_a_step_is_warmed_twice_then_captured_and_from_then_on_replayed():
    backend = Fake()
    graphs = StepGraphs(backend)
    replayed = [graphs.run("key", lambda: None) for _ in range(5)]
    assert replayed == [False, False, True, True, True]
    assert backend.log == ["warm", "warm", "capture", "replay", "replay", "replay"]
    assert (graphs.captures, graphs.replays, graphs.refusal) == (1, 3, None)


def test_every_run_is_one_step_and_counts_as_one():
    counted, x = Counted(), torch.zeros(2)

    def step() -> None:
        counted.step()
        x.add_(1.0)

    graphs = StepGraphs(Tape())
    for made in range(1, 7):
        graphs.run("key", step, counted)
        assert counted.read() == (2 * made, made)
        assert torch.equal(x, torch.full((2,), float(made)))


def test_keys_are_recorded_apart():
    backend = Fake()
    graphs = StepGraphs(backend, warmup=1)
    for key in ("a", "b", "a", "b"):
        graphs.run(key, lambda: None)
    assert backend.log == ["warm", "warm", "capture", "replay", "capture", "replay"]


def test_without_a_backend_every_step_is_eager():
    counted = Counted()
    graphs = StepGraphs(None, required=True)
    assert not any(graphs.run("key", counted.step, counted) for _ in range(4))
    assert counted.read() == (8, 4)
    graphs.release()


def test_a_capture_that_fails_is_said_once_and_every_step_after_is_eager():
    backend, counted = Fake(RuntimeError("no way.\nand more")), Counted()
    graphs = StepGraphs(backend, warmup=1)
    graphs.run("key", counted.step, counted)
    with pytest.warns(ExecutionWarning, match="CUDA graph: not captured, because no way") as said:
        assert not graphs.run("key", counted.step, counted)
    assert "attacks go on without" in str(said[0].message) and ".item()" in str(said[0].message)
    assert "in training" not in str(said[0].message)
    for key in ("key", "other"):
        assert not graphs.run(key, counted.step, counted)
    assert counted.read() == (8, 4)  # the failed capture left no count
    assert backend.log == ["warm", "failed", "release"]
    assert graphs.refusal is not None and graphs.refusal.startswith("no way (")


def test_memory_that_runs_out_while_recording_is_named_as_the_cause():
    graphs = StepGraphs(Fake(torch.OutOfMemoryError("CUDA out of memory. Tried 1 GiB")), warmup=1)
    graphs.run("key", lambda: None)
    with pytest.warns(ExecutionWarning, match="out of memory.*use smaller batches") as said:
        graphs.run("key", lambda: None)
    assert ".item()" not in str(said[0].message)


def test_the_warning_points_at_who_ran_the_step():
    graphs = StepGraphs(Fake(ValueError()), warmup=1, what="training steps")
    graphs.run("key", lambda: None)
    with pytest.warns(ExecutionWarning, match="because ValueError .*training steps go") as said:
        graphs.run("key", lambda: None)
    assert said[0].filename == __file__


def test_a_capture_that_is_required_raises_in_the_same_words():
    backend, counted = Fake(RuntimeError("no way")), Counted()
    graphs = StepGraphs(backend, required=True)
    for _ in range(2):
        graphs.run("key", counted.step, counted)
    with pytest.raises(RuntimeError, match="CUDA graph: not captured, because no way") as raised:
        graphs.run("key", counted.step, counted)
    assert raised.value.__cause__ is backend.fails
    with pytest.raises(RuntimeError, match="because no way .*leave out cuda_graph=True"):
        graphs.run("key", counted.step, counted)
    assert counted.read() == (4, 2)


def test_ctrl_c_in_a_capture_is_no_refusal():
    backend, counted = Fake(KeyboardInterrupt()), Counted()
    graphs = StepGraphs(backend, warmup=1)
    graphs.run("key", counted.step, counted)
    with pytest.raises(KeyboardInterrupt):
        graphs.run("key", counted.step, counted)
    assert counted.read() == (2, 1) and graphs.refusal is None
    backend.fails = None
    assert graphs.run("key", counted.step, counted)
    assert counted.read() == (4, 2)


def test_an_error_of_a_real_step_is_the_callers():
    graphs = StepGraphs(Tape())

    def step() -> None:
        raise KeyError("mine")

    for _ in range(4):
        with pytest.raises(KeyError, match="mine"):
            graphs.run("key", step)
    assert graphs.refusal is None and graphs.captures == 0


class _Big:
    """Stands for what a recording holds."""


def test_the_least_recently_used_recordings_are_dropped():
    alive: list[weakref.ref] = []

    class Holding(Fake):
        def capture(self, function):
            held = _Big()
            alive.append(weakref.ref(held))
            return lambda: held and None

    graphs = StepGraphs(Holding(), warmup=1, most=2)
    for key in ("a", "a", "b", "b", "a", "c", "c"):
        graphs.run(key, lambda: None)
    gc.collect()
    a, b, c = alive
    assert a() is not None and b() is None and c() is not None
    assert graphs.run("a", lambda: None) and not graphs.run("b", lambda: None)


def test_after_a_release_steps_are_warmed_anew():
    backend = Fake()
    graphs = StepGraphs(backend, warmup=1)
    for _ in range(2):
        graphs.run("key", lambda: None)
    graphs.release()
    assert not graphs.run("key", lambda: None) and graphs.run("key", lambda: None)
    assert backend.log == ["warm", "capture", "replay", "release", "warm", "capture", "replay"]


def test_a_model_that_waits_for_the_device_goes_on_eagerly_with_the_same_results():
    def run(graphs: StepGraphs) -> torch.Tensor:
        x = torch.full((3,), 0.1)

        def step() -> None:
            x.mul_(2.0 if x.sum().item() < 1 else 0.5)

        for _ in range(6):
            graphs.run("key", step)
        return x

    graphs = StepGraphs(Tape())
    with pytest.warns(ExecutionWarning, match=r"the step uses \.item\(\)"):
        recorded = run(graphs)
    assert torch.equal(recorded, run(StepGraphs(None)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        graphs.run("another", lambda: None)


@pytest.mark.parametrize("setting", ["warmup", "most"])
def test_settings_below_one_are_refused(setting):
    with pytest.raises(ValueError, match=f"{setting} must be at least 1; got 0"):
        StepGraphs(None, **{setting: 0})
