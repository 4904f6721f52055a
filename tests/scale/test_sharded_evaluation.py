"""Evaluations by two gloo processes against one process: the same report on every rank."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import sharded_runs
import torch
from toy_models import mixed_problem

import fastadv

ROOT = Path(__file__).resolve().parents[2]
# passes count slots that wait for work, which depends on how samples share batches
PASSES = ("forwards", "backwards", "discarded")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sharded")


@pytest.fixture(scope="module")
def ranks(folder: Path) -> tuple[dict, dict]:
    """What each rank found; all runs share one start of two processes."""
    (folder / "one.pt").write_bytes(b"a checkpoint of one process")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [sys.executable, sharded_runs.__file__, str(rank), str(folder)], env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(sharded_runs.WORLD)
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    first, second = (
        torch.load(folder / f"rank-{rank}.pt", weights_only=True)
        for rank in range(sharded_runs.WORLD)
    )
    return first, second


def comparable(text: str, *, passes: bool = False) -> dict:
    read = json.loads(text)
    for part in (read, *read["stages"]):
        for name in ("seconds", *(() if passes else PASSES)):
            part.pop(name, None)
    return read


def one_process(name: str, n: int = sharded_runs.N, **more) -> str:
    torch.set_num_threads(1)
    p = mixed_problem(sharded_runs.N, curvature=1.0)
    attack = sharded_runs.ATTACKS[name]()
    return fastadv.evaluate(p.model, (p.x[:n], p.y[:n]), attack, batch_size=2, **more).to_json()


@pytest.mark.parametrize("name", sharded_runs.ATTACKS)
def test_every_rank_returns_the_report_of_one_process(ranks, name):
    expected = one_process(name)
    robust = json.loads(expected)["samples"]["robust"]
    assert 0 < sum(robust) < len(robust)  # or it could not fail
    for rank in ranks:
        assert comparable(rank[name]) == comparable(expected)
    assert ranks[0][name] == ranks[1][name]


def test_passes_are_added_up(ranks):
    """Without slots that wait they are those of one process."""
    expected = one_process("pgd", execution=fastadv.Execution(batching="plain"))
    for rank in ranks:
        assert comparable(rank["plain batching"], passes=True) == comparable(expected, passes=True)


@pytest.mark.parametrize("name", ["loader", "dataset", "saved", "read again", "resumed"])
def test_data_and_interruptions_change_nothing(ranks, name):
    for rank in ranks:
        assert comparable(rank[name]) == comparable(ranks[0]["ensemble"])


def test_a_resumed_evaluation_makes_as_many_passes(ranks):
    for rank in ranks:
        for name in ("saved", "read again", "resumed"):
            assert comparable(rank[name], passes=True) == comparable(rank["ensemble"], passes=True)


def test_each_rank_has_a_checkpoint_which_another_number_of_them_refuses(ranks, folder):
    names = sorted(path.name for path in folder.glob("whole*"))
    assert names == ["whole.rank0of2.pt", "whole.rank1of2.pt"]
    with pytest.raises(ValueError, match="whole.rank0of2.pt belongs to an evaluation by 2 proc"):
        one_process("ensemble", checkpoint=folder / "whole.pt")


def test_a_data_set_is_read_once_together(ranks):
    assert [rank["reads"] for rank in ranks] == [31, 30]


def test_a_shuffled_loader_with_the_same_seed_is_one_order(ranks):
    assert ranks[0]["same order"] == ranks[1]["same order"]
    counts = [sum(json.loads(rank["same order"])["samples"]["clean_correct"]) for rank in ranks]
    assert counts == [sum(json.loads(one_process("pgd"))["samples"]["clean_correct"])] * 2


def test_fewer_samples_than_processes(ranks):
    for rank in ranks:
        read = json.loads(rank["few samples"])
        assert read["n"] == 1 and len(read["samples"]["robust"]) == 1


def test_the_wrapper_of_data_parallel_training_is_taken_off(ranks):
    for rank in ranks:
        assert comparable(rank["wrapped"]) == comparable(rank["pgd"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("of one", "one.pt belongs to an evaluation by 1 process, not 2"),
        ("sampler", "data has a DistributedSampler, which gives every process other samples"),
        ("shuffle", "data shuffles, in another order in every process"),
        ("other order", "data must come in the same order in every process"),
        ("fewer", "data must come in the same order in every process"),
        ("other model", "every process must get the same model"),
        ("other attack", "every process must get the same attack"),
        ("empty", "data is empty"),
    ],
)
def test_what_would_give_wrong_results_is_refused_on_every_rank(ranks, name, message):
    for rank in ranks:
        assert rank[name].startswith("ValueError: ") and message in rank[name]


def test_a_failure_on_one_rank_is_raised_on_all(ranks):
    assert (
        ranks[0]["failing"] == "RuntimeError: process 1 of 2 failed: RuntimeError: no memory here"
    )
    assert ranks[1]["failing"] == "RuntimeError: no memory here"
