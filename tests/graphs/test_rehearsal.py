"""A replay is held against the step itself, and refused where it does something else."""

import itertools
import math
import warnings

import pytest
import torch
from tape import Forgetful, Tape

from fastadv.diagnostics import ExecutionWarning
from fastadv.graphs.planner import StepGraphs
from fastadv.graphs.rehearsal import Saved, distance


class Walk:
    """x moves by what Python holds, and by what lies in the tensor that `at` is by now."""

    def __init__(self) -> None:
        self.x, self.at = torch.zeros(3), torch.ones(3)
        self.factor, self.steps = 1.0, 0

    def step(self) -> None:
        self.steps += 1
        self.x.add_(self.at * self.factor).mul_(1.1)

    def read(self) -> tuple[int, ...]:
        return (self.steps,)

    def write(self, values: tuple[int, ...]) -> None:
        (self.steps,) = values

    def written(self) -> dict[str, torch.Tensor]:
        return {"x": self.x, "sparse": torch.eye(2).to_sparse(), "wide": self.at[:1].expand(3)}

    def run(self, graphs: StepGraphs, times: int) -> list[bool]:
        return [graphs.run("key", self.step, self, self.written) for _ in range(times)]


def _walked(times: int, change=lambda walk, i: None) -> Walk:
    walk = Walk()
    for i in range(times):
        change(walk, i)
        walk.step()
    return walk


def test_the_first_two_replays_of_a_recording_are_held_against_the_step_and_no_more():
    tape, walk = Tape(), Walk()
    graphs = StepGraphs(tape)
    assert walk.run(graphs, 7) == [False, False, True, True, True, True, True]
    assert torch.equal(walk.x, _walked(7).x) and walk.steps == 7
    assert (graphs.captures, graphs.replays, graphs.refusal) == (1, 5, None)
    assert (tape.warmed, tape.rehearsed, tape.replayed) == (2, 4, 5)


def test_without_a_word_on_what_is_written_nothing_is_checked():
    tape, walk = Tape(), Walk()
    for _ in range(6):
        StepGraphs(tape, warmup=1).run("key", walk.step, walk)
    assert tape.rehearsed == 0


def _faster(walk: Walk, i: int) -> None:
    walk.factor = 1.0 + i


def _elsewhere(walk: Walk, i: int) -> None:
    walk.at = torch.full((3,), 1.0 + i)


@pytest.mark.parametrize("change", [_faster, _elsewhere])
def test_a_recording_of_what_python_changes_is_refused_and_its_results_are_the_eager_ones(change):
    tape, walk = Tape(), Walk()
    graphs, replayed = StepGraphs(tape), []
    with pytest.warns(ExecutionWarning, match="a replay left x .* away from what the step itself"):
        for i in range(8):
            change(walk, i)
            replayed += walk.run(graphs, 1)
    # recorded and replayed with what was so, and found out once it was not
    assert replayed == [False, False, True, False, False, False, False, False]
    assert torch.equal(walk.x, _walked(8, change).x) and walk.steps == 8
    assert graphs.refusal is not None and "0 of itself" in graphs.refusal and tape.released == 1


def test_a_replay_that_leaves_an_operation_out_is_refused_at_once():
    walk = Walk()
    graphs = StepGraphs(Forgetful())
    with pytest.warns(ExecutionWarning, match="attacks go on without") as said:
        assert walk.run(graphs, 6) == [False] * 6
    assert len(said) == 1 and said[0].filename == __file__
    assert torch.equal(walk.x, _walked(6).x) and walk.steps == 6
    assert (graphs.captures, graphs.replays) == (1, 0)


def test_where_graphs_are_required_a_difference_raises_and_the_state_is_that_before():
    walk = Walk()
    graphs = StepGraphs(Forgetful(), required=True)
    walk.run(graphs, 2)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="a replay left x .*leave out cuda_graph=True"):
            walk.run(graphs, 1)
    assert torch.equal(walk.x, _walked(2).x) and walk.steps == 2


def test_a_step_that_draws_is_the_one_it_would_have_been():
    def run(graphs: StepGraphs, times: int) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(7)
        x = torch.zeros(50)

        def step() -> None:
            x.add_(torch.nn.functional.dropout(torch.rand(50), 0.5))

        for _ in range(times):
            graphs.run("key", step, written=lambda: {"x": x})
        return x, torch.get_rng_state()

    graphs, generator = StepGraphs(Tape()), torch.get_rng_state()
    recorded = run(graphs, 6)
    assert graphs.replays == 4 and graphs.refusal is None
    for a, b in zip(recorded, run(StepGraphs(None), 6), strict=True):
        assert torch.equal(a, b)
    torch.set_rng_state(generator)


class Restless:
    """Like a sum in any order: one of a few values about 1, here by what `noise` yields; a replay
    on the tape takes them from a tensor that is drawn anew as well."""

    def __init__(self, noise: list[float], replayed: float) -> None:
        self.x, self.steady = torch.zeros(4), torch.zeros(4)
        self.noise = itertools.cycle(noise)
        self.replayed = replayed

    def step(self) -> None:
        self.x.copy_(torch.full((4,), 1.0 + next(self.noise)))
        self.steady.add_(1.0)

    def written(self) -> dict[str, torch.Tensor]:
        return {"x": self.x, "steady": self.steady}


class OnRestless(Tape):
    """Replays make the step of a `Restless` with the value that is to be found."""

    def __init__(self, restless: Restless) -> None:
        super().__init__()
        self.restless = restless
        self.steadily = 1.0

    def capture(self, function):
        def replay() -> None:
            self.replayed += 1
            self.restless.x.fill_(1.0 + self.restless.replayed)
            self.restless.steady.add_(self.steadily)

        return replay


def _restless(noise: list[float], replayed: float, steadily: float = 1.0) -> StepGraphs:
    restless = Restless(noise, replayed)
    tape = OnRestless(restless)
    tape.steadily = steadily
    graphs = StepGraphs(tape, warmup=1)
    for step in range(1, 5):
        graphs.run("key", restless.step, written=restless.written)
        assert torch.equal(restless.steady, torch.full((4,), float(step)))
    return graphs


def test_where_a_step_is_never_twice_the_same_a_replay_may_be_off_by_twice_that():
    assert _restless([0.0, 0.25], 0.75).refusal is None
    with pytest.warns(ExecutionWarning, match="left x .* within 0.25 of itself"):
        assert _restless([0.0, 0.25], 0.76).replays == 0
    # in the tensors in which it is, alone
    with pytest.warns(ExecutionWarning, match="left steady .* within 0 of itself"):
        assert _restless([0.0, 0.25], 0.0, steadily=1.0 + 2**-20).replays == 0


def test_a_rare_difference_is_waited_for_before_the_replay_is_blamed():
    # the first two runs are all but the same, a later one is as far away as the replay
    assert _restless([0.0, 0.001, 0.002, 0.25], 0.25).refusal is None
    with pytest.warns(ExecutionWarning, match="left x"):
        _restless([0.0], 2**-20)


def test_an_error_in_a_check_is_the_callers_and_leaves_all_as_it_was():
    walk, tape = Walk(), Tape()
    graphs = StepGraphs(tape, warmup=1)
    walk.run(graphs, 1)
    for error in (KeyError("mine"), KeyboardInterrupt()):

        def step(error: BaseException = error) -> None:
            walk.step()
            if tape.rehearsed % 2:
                raise error

        before = walk.x.clone(), walk.steps
        with pytest.raises(type(error)):
            graphs.run("key", step, walk, walk.written)
        assert torch.equal(walk.x, before[0]) and walk.steps == before[1]
        tape.rehearsed = 0
    assert graphs.refusal is None
    assert walk.run(graphs, 2) == [True, True]


def test_memory_that_runs_out_in_a_check_ends_recordings_and_not_the_step():
    walk, tape = Walk(), Tape()
    graphs = StepGraphs(tape, warmup=1)

    def step() -> None:
        walk.step()
        if tape.rehearsed == 2 and not tape.released:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried 1 GiB")

    with pytest.warns(ExecutionWarning, match="out of memory.*use smaller batches"):
        for _ in range(4):
            graphs.run("key", step, walk, walk.written)
    assert torch.equal(walk.x, _walked(4).x) and walk.steps == 4 and graphs.replays == 0


def test_after_a_refusal_nothing_is_said_or_compared_again():
    walk, tape = Walk(), Forgetful()
    graphs = StepGraphs(tape, warmup=1)
    with pytest.warns(ExecutionWarning):
        walk.run(graphs, 2)
    compared = tape.rehearsed
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        walk.run(graphs, 3)
    assert tape.rehearsed == compared


def test_a_distance_is_zero_for_the_same_bits_alone():
    nan, inf = math.nan, math.inf
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        a = torch.tensor([1.0, nan, inf, -0.0], dtype=dtype)
        assert distance(a, a.clone()) == 0.0
        assert distance(a, torch.tensor([1.5, nan, inf, -0.0], dtype=dtype)) == 0.5
        assert 0.0 < distance(a, torch.tensor([1.0, nan, inf, 0.0], dtype=dtype)) < 1e-300
        assert distance(a, torch.tensor([1.0, nan, 0.0, -0.0], dtype=dtype)) == inf
        assert distance(a, torch.tensor([1.0, 0.0, inf, -0.0], dtype=dtype)) == inf
    big = torch.tensor([2**40, 3])
    assert distance(big, big + 1) == 1.0 and distance(big, big) == 0.0
    assert distance(torch.tensor([True]), torch.tensor([False])) == 1.0
    z = torch.tensor([1 + 2j])
    assert distance(z, z + 0.5j) == 0.5 and distance(z.conj(), z.conj()) == 0.0
    assert distance(torch.zeros(0), torch.zeros(0)) == distance(z[0], z[0]) == 0.0


def test_what_is_saved_is_put_back_where_it_can_be_written():
    weight = torch.nn.Parameter(torch.ones(2, 3))
    with torch.inference_mode():
        fixed = torch.ones(2)
    tensors = {"weight": weight, "view": weight.t(), "fixed": fixed, "one": torch.tensor(3)}
    tensors["wide"] = torch.zeros(1).expand(5)
    saved = Saved(tensors)
    with torch.no_grad():
        weight.mul_(5.0)
        tensors["one"].add_(1)
    assert saved.distances(saved.values()) == {"weight": 0.0, "view": 0.0, "one": 0.0}
    saved.put_back()
    assert torch.equal(weight, torch.ones(2, 3)) and int(tensors["one"]) == 3
