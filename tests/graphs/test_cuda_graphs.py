"""Recording and replaying on a GPU; everything that does not need one is tested elsewhere."""

import pytest
import torch
from torch import nn

from fastadv.diagnostics import ExecutionWarning
from fastadv.graphs.cuda import CudaGraphs, backend_for
from fastadv.graphs.planner import StepGraphs
from fastadv.graphs.unrecordable import Unrecordable
from fastadv.isolation import restored_generators
from fastadv.ops.heads import loss_head as heads
from fastadv.ops.steps import linf

_CPU = torch.device("cpu")
_GENERATOR = 2 << 20  # the smallest block: seed and offset of a recorded generator lie in one


@pytest.fixture
def graphs() -> CudaGraphs:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return CudaGraphs(torch.device("cuda"))


def test_a_backend_is_chosen_by_device_and_wish():
    assert backend_for(_CPU, "auto") is None and backend_for(_CPU, False) is None
    cuda = torch.device("cuda", 0)  # making one touches no device
    for wish in ("auto", True):
        assert isinstance(backend_for(cuda, wish), CudaGraphs)
    assert backend_for(cuda, False) is None


def test_what_cannot_be_had_is_named():
    with pytest.raises(ValueError, match="cuda_graph=True needs tensors on a CUDA device; got cpu"):
        backend_for(_CPU, True)
    with pytest.raises(ValueError, match="cuda_graph must be 'auto', True or False; got 'on'"):
        backend_for(_CPU, "on")


class _Problem:
    """An attack step on a linear model: sums in one order, so that bits can be compared."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.net = nn.Linear(64, 10).cuda()
        self.x = torch.rand(32, 64, generator=generator).cuda()
        self.y = torch.randint(10, (32,), generator=generator).cuda()
        self.x_adv = self.x.clone()
        self.losses = torch.zeros(32, device="cuda")

    def written(self) -> dict[str, torch.Tensor]:
        return {"x_adv": self.x_adv, "losses": self.losses}

    def step(self) -> None:
        leaf = self.x_adv.detach().requires_grad_()
        logits = self.net(leaf)
        head = heads.loss_head(logits, self.y, loss="ce")
        (grad,) = torch.autograd.grad(logits, leaf, head.grad)
        linf.linf_step_(self.x_adv, grad, self.x, step_size=0.01, eps=0.1, bounds=(0.0, 1.0))
        self.losses.copy_(head.loss)


def test_a_step_that_draws_passes_the_check_and_is_the_one_it_would_have_been(graphs):
    def run(planner: StepGraphs) -> torch.Tensor:
        torch.manual_seed(7)
        x = torch.zeros(1000, device="cuda")

        def step() -> None:
            with restored_generators(x.device, seed=1):  # a craft's, which a recording leaves out
                torch.rand(3)
            x.add_(nn.functional.dropout(torch.rand_like(x), 0.5))

        for _ in range(6):
            planner.run("step", step, written=lambda: {"x": x})
        return x

    planner = StepGraphs(graphs, required=True)
    assert torch.equal(run(planner), run(StepGraphs(None))) and planner.replays == 4


def test_a_recording_that_has_gone_stale_is_found_out_at_its_second_replay(graphs):
    problem, eager = _Problem(), _Problem()
    eager.net.load_state_dict(problem.net.state_dict())
    planner = StepGraphs(graphs, warmup=1)
    for number in range(5):
        for one in (problem, eager):
            one.x = one.x + 0.01 * number
        eager.step()
        if number == 2:
            with pytest.warns(ExecutionWarning, match="a replay left x_adv"):
                planner.run("step", problem.step, written=problem.written)
        else:
            planner.run("step", problem.step, written=problem.written)
        assert torch.equal(problem.x_adv, eager.x_adv)
    assert planner.replays == 1


def test_a_replayed_step_with_a_backward_equals_eager_steps(graphs):
    problem, eager = _Problem(), _Problem()
    eager.net.load_state_dict(problem.net.state_dict())
    planner = StepGraphs(graphs, required=True)
    for _ in range(6):
        planner.run("step", problem.step, written=problem.written)
        eager.step()
        assert torch.equal(problem.x_adv, eager.x_adv)
        assert torch.equal(problem.losses, eager.losses)
    assert planner.replays == 4


def test_a_capture_executes_nothing(graphs):
    problem = _Problem()
    graphs.warm(problem.step)
    before = problem.x_adv.clone()
    graphs.capture(problem.step)
    torch.cuda.synchronize()
    assert torch.equal(problem.x_adv, before)


def test_weights_changed_in_place_are_seen(graphs):
    problem = _Problem()
    graphs.warm(problem.step)
    replay = graphs.capture(problem.step)
    with torch.no_grad():
        problem.net.weight.neg_()
    twin = _Problem()
    twin.net.load_state_dict(problem.net.state_dict())
    twin.x_adv.copy_(problem.x_adv)
    replay()
    twin.step()
    assert torch.equal(problem.losses, twin.losses) and torch.equal(problem.x_adv, twin.x_adv)


def test_replays_run_on_the_stream_of_their_caller(graphs):
    x = torch.zeros(1 << 20, device="cuda")

    def step() -> None:
        x.add_(1.0)

    graphs.warm(step)
    replay = graphs.capture(step)
    for _ in range(50):
        replay()
    assert float(x[-1]) == 51.0  # read on the default stream, without a wait in between


def test_the_generator_moves_on_with_each_replay(graphs):
    out = torch.zeros(8, device="cuda")

    def step() -> None:
        out.copy_(torch.rand(8, device="cuda"))

    graphs.warm(step)
    replay = graphs.capture(step)
    torch.manual_seed(3)
    seen = []
    for _ in range(2):
        replay()
        seen.append(out.clone())
    torch.manual_seed(3)
    replay()
    assert not torch.equal(seen[0], seen[1]) and torch.equal(out, seen[0])


def _asks(problem: _Problem) -> None:
    problem.step()
    if problem.losses.sum().item() > 0:
        problem.step()


def _waits(problem: _Problem) -> None:
    problem.step()
    torch.cuda.synchronize()  # seen by CUDA alone, which ends the recording in an error


def _raises(problem: _Problem) -> None:
    problem.step()
    raise KeyError("mine")


@pytest.mark.parametrize(
    ("function", "error"), [(_asks, Unrecordable), (_waits, RuntimeError), (_raises, KeyError)]
)
def test_after_a_capture_that_failed_everything_works(graphs, function, error):
    problem = _Problem()
    stream = torch.cuda.current_stream()
    graphs.warm(problem.step)
    before = problem.x_adv.clone()
    with pytest.raises(error):
        graphs.capture(lambda: function(problem))
    assert torch.cuda.current_stream() == stream and torch.equal(problem.x_adv, before)
    assert not torch.cuda.is_current_stream_capturing()
    torch.rand(4, device="cuda")  # the generator is not being recorded any more
    freed = torch.zeros(1 << 22, device="cuda")
    del freed
    torch.cuda.empty_cache()
    replay = graphs.capture(problem.step)
    replay()
    graphs.warm(problem.step)
    assert not torch.equal(problem.x_adv, before)


def _hungry(rows: int):
    """A step with 16 MB of intermediates for each 1,024 rows."""
    x = torch.ones(rows, 4096, device="cuda")
    out = torch.zeros((), device="cuda")

    def step() -> None:
        out.copy_((x * 2).add(1).sum())

    return step


def test_graphs_share_their_memory_and_give_it_back(graphs):
    step = _hungry(4096)
    graphs.warm(step)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    kept = [graphs.capture(step)]
    one = torch.cuda.memory_reserved() - before
    kept += [graphs.capture(step) for _ in range(7)]
    eight = torch.cuda.memory_reserved() - before
    assert 2 * 4096 * 4096 * 4 <= one and eight <= 1.5 * one
    for replay in kept:
        replay()
    graphs.release()
    assert torch.cuda.memory_reserved() <= before + _GENERATOR
    with pytest.raises(RuntimeError):
        kept[0]()
    replay = graphs.capture(step)  # a pool of its own again
    replay()
    torch.cuda.synchronize()


def test_a_recording_that_is_forgotten_gives_its_memory_back(graphs):
    step = _hungry(4096)
    graphs.warm(step)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    replay = graphs.capture(step)
    del replay
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= before + _GENERATOR
    graphs.capture(step)()
    torch.cuda.synchronize()
