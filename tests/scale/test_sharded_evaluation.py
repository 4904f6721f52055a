"""Evaluations by two and three gloo processes against one: the same report on every rank."""

import json
from pathlib import Path

import pytest
import sharded_runs
import torch
from sharded_processes import comparable, ended, rows_in, started

import fastadv


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sharded")


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict]:
    for name in ("one.pt", "one, dataset.pt"):
        stop_one_process(folder / name)
    return ended(started("all", 2, folder), folder)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder = tmp_path_factory.mktemp("three")
    return ended(started("attacks", 3, folder), folder)


def stop_one_process(path: Path) -> None:
    """Leave what one process has done of the ensemble: 16 samples, and 16 by two attacks."""
    torch.set_num_threads(1)
    sharded_runs._stopped(sharded_runs.report_of, 1, path, at=3)
    (saved, begun) = rows_in(path)
    assert (len(saved), len(begun)) == (16, 16)


def one_process(name: str, **more) -> str:
    torch.set_num_threads(1)
    return sharded_runs.report_of(name, **more)


@pytest.mark.parametrize("name", (*sharded_runs.ATTACKS, *sharded_runs.JUDGED))
def test_every_rank_returns_the_report_of_one_process(ranks, three, name):
    expected = one_process(name)
    robust = json.loads(expected)["samples"]["robust"]
    assert 0 < sum(robust) < len(robust)  # or it could not fail
    for together in (ranks, three):
        for rank in together:
            assert comparable(rank[name]) == comparable(expected)
            assert rank[name] == together[0][name]


def test_passes_are_added_up(ranks, three):
    """Without slots that wait they are those of one process."""
    expected = one_process("pgd", execution=fastadv.Execution(batching="plain"))
    for rank in (*ranks, *three):
        assert comparable(rank["plain batching"], passes=True) == comparable(expected, passes=True)


@pytest.mark.parametrize(
    "name",
    ["loader", "dataset", "saved", "read again", "resumed", "of one", "of one, dataset"],
)
def test_data_and_interruptions_change_nothing(ranks, name):
    for rank in ranks:
        assert comparable(rank[name]) == comparable(ranks[0]["ensemble"])


def test_a_resumed_evaluation_makes_as_many_passes(ranks):
    for rank in ranks:
        for name in ("saved", "read again", "resumed"):
            assert comparable(rank[name], passes=True) == comparable(rank["ensemble"], passes=True)


def test_in_the_end_there_is_one_file_which_any_number_of_processes_reads(ranks, folder):
    assert [path.name for path in folder.glob("*whole*")] == ["whole.pt"]
    before = (folder / "whole.pt").read_bytes()
    again = one_process("ensemble", checkpoint=folder / "whole.pt")
    assert json.loads(again)["samples"] == json.loads(ranks[0]["saved"])["samples"]
    assert comparable(again, passes=True) == comparable(ranks[0]["saved"], passes=True)
    assert json.loads(again)["seconds"] == json.loads(ranks[0]["saved"])["seconds"]
    assert (folder / "whole.pt").read_bytes() == before


def test_one_process_goes_on_from_what_two_have_left(ranks, folder):
    files = sorted(path.name for path in folder.glob("left*"))
    assert files == ["left.rank0of2.pt", "left.rank1of2.pt"]
    finished, begun = rows_in(folder / files[0])
    more, _ = rows_in(folder / files[1])
    assert begun and more and finished == []  # rank 0 inside of its first block
    again = one_process("ensemble", checkpoint=folder / "left.pt")
    assert comparable(again) == comparable(ranks[0]["ensemble"])
    assert [path.name for path in folder.glob("*left*")] == ["left.pt"]


def test_of_a_data_set_a_process_reads_its_share_only(ranks):
    assert [rank["reads"] for rank in ranks] == [31, 30]
    # of 61 are 16 finished, 16 begun, which one of the two goes on with, 29 are missing
    assert [rank["reads of one"] for rank in ranks] == [8 + 16 + 15, 8 + 14]


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
        ("sampler", "data has a DistributedSampler, which gives every process other samples"),
        ("shuffle", "data shuffles, in another order in every process"),
        ("other order", "data must come in the same order in every process"),
        ("fewer", "data must come in the same order in every process"),
        ("fewer, tensors", "every process must get the same data; they got [61, 57] samples"),
        ("other model", "every process must get the same model"),
        ("other attack", "every process must get the same attack"),
        ("empty", "data is empty"),
    ],
)
def test_what_would_give_wrong_results_is_refused_on_every_rank(ranks, name, message):
    for rank in ranks:
        assert rank[name].startswith("ValueError: ") and message in rank[name]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("failing", "RuntimeError: no memory here"),
        ("damaged", "is not a checkpoint of fastadv.evaluate"),
        ("other data", "left.pt belongs to other data: sample "),
    ],
)
def test_a_failure_is_raised_on_all_ranks(ranks, name, message):
    assert all(message in rank[name] for rank in ranks)


def test_a_failure_on_one_rank_is_raised_on_all_and_names_it(ranks):
    assert (
        ranks[0]["failing"] == "RuntimeError: process 1 of 2 failed: RuntimeError: no memory here"
    )
    assert ranks[1]["failing"] == "RuntimeError: no memory here"


def test_ctrl_c_on_one_rank_is_an_error_in_words_on_the_others(ranks):
    """It lives on, so no connection is closed by the end of a process."""
    kept = "are in the checkpoint"
    first, second = (rank["gone"] for rank in ranks)
    assert first.startswith("RuntimeError: process 0 of 2 cannot go on: another process is gone")
    assert kept in first and "gone.pt: the same call goes on from there" in first
    assert second.startswith("RuntimeError: evaluation interrupted: ") and kept in second
    for rank in ranks:
        assert comparable(rank["after it"]) == comparable(rank["pgd"])
