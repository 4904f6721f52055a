"""Two gloo processes with DistributedDataParallel against one process, for every method."""

from collections.abc import Callable

import ddp_runs
import pytest
import torch
from forked import Forked

# the ranks sum in another order than one process; float64 leaves 1e-15 or so
CLOSE = dict(rtol=0.0, atol=1e-9)

ONE_LOSS = [name for name in ddp_runs.STEPS if name != "FreeAT"]
# AWP moves the weights by the gradient of a rank's own share: see the test of it
GLOBAL = [name for name in ddp_runs.STEPS if "AWP" not in name and name != "all modifiers"]
# training forwards a batch with BatchNorm in train mode; crafting leaves no trace
FORWARDS = {
    "FastAT": 1,
    "NFGSM": 1,
    "PGDAT": 1,
    "TRADES": 2,
    "MART": 2,
    "YOPO": 3,
    "FreeAT": 3,
    "PGDAT of an objective": 1,
    "AWP": 1,
    "TRADES with AWP": 2,
    "GradAlign": 1,
    "CleanMixing": 2,
    "all modifiers": 2,
}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[dict, dict]]:
    """What each rank saw in the run of a name; all runs share one start of two processes."""
    folder = tmp_path_factory.mktemp("ddp")
    processes = [Forked(ddp_runs.__file__, rank, folder) for rank in range(ddp_runs.WORLD)]
    try:
        outputs = [process.communicate() for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], outputs
    saved = [
        torch.load(folder / f"rank-{rank}.pt", weights_only=True) for rank in range(ddp_runs.WORLD)
    ]

    def of(name: str) -> tuple[dict, dict]:
        errors = [
            f"rank {r}: {s[name]['error']}" for r, s in enumerate(saved) if "error" in s[name]
        ]
        assert not errors, "\n".join(errors)
        return saved[0][name], saved[1][name]

    return of


def one_process(name: str, *, loop=ddp_runs.train, count: int = ddp_runs.BATCHES) -> torch.Tensor:
    model = ddp_runs.small_net()
    loop(model, ddp_runs.sgd(model), ddp_runs.STEPS[name](), ddp_runs.batches(count))
    return ddp_runs.flat(model)


def distance_from_the_start(weights: torch.Tensor) -> float:
    return float((weights - ddp_runs.flat(ddp_runs.small_net())).abs().max())


@pytest.mark.parametrize("name", ddp_runs.STEPS)
def test_gradients_are_reduced_once_an_optimizer_step(ranks, name):
    replays = 3 if name == "FreeAT" else 1
    for rank in ranks(name):
        assert rank["updates"] == ddp_runs.BATCHES * replays
        assert len(rank["reduced"]) == rank["updates"]
        assert set(rank["reduced"]) == {rank["weights"].numel()}  # all weights in one bucket


@pytest.mark.parametrize("name", ddp_runs.STEPS)
def test_the_wrapper_is_called_once_an_optimizer_step(ranks, name):
    own = ddp_runs.BATCH // ddp_runs.WORLD
    for rank in ranks(name):
        assert rank["calls"] == [own] * rank["updates"]


@pytest.mark.parametrize("name", GLOBAL)
def test_two_processes_reach_the_weights_of_one(ranks, name):
    expected = one_process(name)
    assert distance_from_the_start(expected) > 0.01
    for rank in ranks(name):
        torch.testing.assert_close(rank["weights"], expected, **CLOSE)


@pytest.mark.parametrize("name", ["AWP", "TRADES with AWP", "all modifiers"])
def test_awp_perturbs_the_weights_by_the_gradient_of_the_own_share(ranks, name):
    """A perturbation by the global gradient would cost a second all-reduce an update."""
    expected = ddp_runs.mean_of_shares(name, count=ddp_runs.BATCHES)
    assert distance_from_the_start(expected) > 0.01
    for rank in ranks(name):
        torch.testing.assert_close(rank["weights"], expected, **CLOSE)


@pytest.mark.parametrize("name", ONE_LOSS)
def test_accumulation_under_no_sync_reduces_once_an_update(ranks, name):
    for rank in ranks(f"{name}, accumulated"):
        assert rank["updates"] == 3
        assert len(rank["reduced"]) == 3
        assert len(rank["calls"]) == 6


@pytest.mark.parametrize("name", [name for name in GLOBAL if name in ONE_LOSS])
def test_accumulation_in_two_processes_reaches_the_weights_of_one(ranks, name):
    expected = one_process(name, loop=ddp_runs.accumulate, count=6)
    assert distance_from_the_start(expected) > 0.01
    for rank in ranks(f"{name}, accumulated"):
        torch.testing.assert_close(rank["weights"], expected, **CLOSE)


@pytest.mark.parametrize("name", ddp_runs.STEPS)
def test_batchnorm_trains_and_counts_training_forwards_only(ranks, name):
    """Buffers written by a second forward through DDP break its backward: pytorch #175024."""
    first, second = ranks(f"{name}, BatchNorm")
    assert len(first["reduced"]) == len(first["calls"]) == first["updates"]
    assert torch.equal(first["weights"], second["weights"])
    counted = int(first["buffers"]["1.num_batches_tracked"])
    assert counted == ddp_runs.BATCHES * FORWARDS[name]


@pytest.mark.parametrize("name", ONE_LOSS)
def test_with_batchnorm_the_update_is_the_mean_of_the_shares(ranks, name):
    """Each rank normalises by its own share, as in DDP without synchronised BatchNorm."""
    expected = ddp_runs.mean_of_shares(name, count=1, batchnorm=True)
    for rank in ranks(f"{name}, BatchNorm, 1 batch"):
        torch.testing.assert_close(rank["weights"], expected, **CLOSE)


def test_the_free_perturbation_of_a_rank_is_that_of_its_positions(ranks):
    model, step = ddp_runs.small_net(), ddp_runs.STEPS["FreeAT"]()
    ddp_runs.train(model, ddp_runs.sgd(model), step, ddp_runs.batches())
    deltas = [rank["state"]["delta"] for rank in ranks("FreeAT")]
    assert float(step.delta.abs().amin()) < float(step.delta.abs().amax()) == pytest.approx(0.1)
    torch.testing.assert_close(torch.cat(deltas), step.delta, **CLOSE)


def test_free_resumed_from_one_file_a_rank_ends_with_the_same_bits(ranks):
    for whole, resumed in zip(ranks("FreeAT"), ranks("FreeAT, resumed"), strict=True):
        assert torch.equal(resumed["weights"], whole["weights"])
        assert torch.equal(resumed["state"]["delta"], whole["state"]["delta"])
        assert resumed["state"]["batches"] == whole["state"]["batches"] == 15
