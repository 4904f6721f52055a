import pytest
import torch

import fastadv
from benchmarks.attacks import __main__ as attacks
from benchmarks.attacks import counts
from benchmarks.harness import networks, peers
from benchmarks.harness.peers import Settings
from benchmarks.harness.tally import Tally
from fastadv.ops import backend

_SETTINGS = Settings("pgd", "linf", 8 / 255, 2 / 255, steps=3)


@pytest.fixture(scope="module")
def problem() -> networks.Problem:
    return networks.batchnorm(4, torch.device("cpu"))


def _count(driver: peers.Driver, problem: networks.Problem, norm: str = "linf") -> counts.StepCost:
    def run(k: int) -> torch.Tensor:
        settings = Settings("pgd", norm, 8 / 255, 2 / 255, steps=k)
        return driver(settings, problem)()

    return counts.count_step(run, model=problem.model, x=problem.x)


@pytest.fixture
def interpreted():
    if not backend.triton_is_installed() or not backend.interpreting():
        pytest.skip("needs the Triton interpreter, TRITON_INTERPRET=1")
    with backend.use_backend("triton"):
        yield


@pytest.mark.filterwarnings("ignore:small_radius")  # it is the step that is counted
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_step_is_two_ops_and_two_launches_beside_the_model(interpreted, problem, norm):
    cost = _count(attacks.last_iterate, problem, norm)
    assert (cost.ops, cost.launches, cost.data_dependent_ops) == (2, 2, 0), cost.names


def test_a_linf_step_moves_16_bytes_an_element(interpreted, problem):
    cost = _count(attacks.last_iterate, problem)
    # beside x_adv (read, written), grad and x: 10 logits a sample and the slots, 0.1 B an element
    assert 16 <= cost.bytes_per_element < 16.2


def test_the_reference_is_seen_through_the_op(problem):
    with backend.use_backend("reference"):
        cost = _count(attacks.last_iterate, problem)
    assert cost.ops == 2 and cost.launches > 10 and cost.data_dependent_ops == 0, cost.names


def test_torchattacks_takes_12_ops_and_68_bytes_an_element(problem):
    try:
        cost = _count(peers.torchattacks, problem)
    except peers.Unavailable as reason:
        pytest.skip(str(reason))
    assert (cost.ops, cost.launches) == (12, 12), cost.names
    assert 68 <= cost.bytes_per_element < 68.2


def test_a_model_alone_costs_nothing_beside_itself(problem):
    def run(k: int) -> None:
        for _ in range(k):
            leaf = problem.x.detach().requires_grad_()
            logits = problem.model(leaf)
            torch.autograd.grad(logits, leaf, torch.empty_like(logits))

    cost = counts.count_step(run, model=problem.model, x=problem.x)
    assert cost == counts.StepCost(0, 0, 0.0, 0)


def test_bytes_are_the_distinct_tensors_read_and_written():
    a, b = torch.zeros(10), torch.zeros(1).expand(10)
    with Tally() as tally:
        a + a  # one read, one write
        a + b  # 40 B and 4 B read, 40 B written
        a.add_(1)  # one read, one write
        a.zero_()  # one write
        a.view(2, 5).t()  # nothing
    assert tally.nbytes == 80 + 84 + 80 + 40
    assert tally.ops == tally.launches == 4


@pytest.mark.parametrize(
    "run",
    [
        lambda x: x.sum().item(),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: bool((x > 0).any()),
    ],
)
def test_reads_by_the_host_are_seen(run):
    with Tally() as tally:
        run(torch.ones(3))
    assert tally.data_dependent == 1


def test_indexing_by_integers_reads_nothing():
    with Tally() as tally:
        torch.ones(3)[torch.tensor([0, 2])]
    assert tally.data_dependent == 0


def test_patches_are_taken_back(interpreted, problem):
    from triton.runtime import interpreter

    before = interpreter.GridExecutor.__call__, interpreter.InterpreterBuilder.create_masked_load
    with pytest.raises(ZeroDivisionError), Tally():
        fastadv.ops.linf_step(problem.x, problem.x, problem.x, step_size=0.1, eps=0.1)
        raise ZeroDivisionError
    after = interpreter.GridExecutor.__call__, interpreter.InterpreterBuilder.create_masked_load
    assert after == before
