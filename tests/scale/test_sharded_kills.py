"""Processes killed with SIGKILL: what the others say, and any number of them goes on."""

import shutil
import time
from pathlib import Path

import pytest
import sharded_runs
import torch
from forked import Forked
from sharded_processes import comparable, ended, rows_in, started


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> str:
    torch.set_num_threads(1)
    return sharded_runs.ensemble_alone(0, 1, tmp_path_factory.mktemp("one"), 0.0)["ensemble"]


def wait_for(folder: Path, ready, processes: list[Forked]) -> None:
    """Until `ready` of {file: (finished, begun)}, while all processes run."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert all(process.poll() is None for process in processes), "it was over too soon"
        if ready({path.name: rows_in(path) for path in folder.glob("run*.pt")}):
            return
        time.sleep(0.01)
    raise AssertionError("nothing was saved")


def test_a_killed_process_is_an_error_in_words_and_any_number_goes_on(undisturbed, tmp_path):
    """One of three is killed inside its second block; the others finish theirs."""
    whole = tmp_path / "three"
    whole.mkdir()
    processes = started("ensemble", 3, whole, pace=0.01)

    def ready(files) -> bool:
        return all(files.get("run.rank1of3.pt", ((), ())))  # finished rows, and begun ones

    wait_for(whole, ready, processes)
    processes[1].kill()
    processes[1].communicate()
    survivors = [processes[0], processes[2]]
    outputs = [process.communicate() for process in survivors]
    assert [process.returncode for process in survivors] == [0, 0], outputs
    for rank in (0, 2):
        text = torch.load(whole / f"rank-{rank}.pt", weights_only=True)["error"]
        assert text.startswith(f"RuntimeError: process {rank} of 3 cannot go on: another process")
        assert f"are in the checkpoint {whole / 'run.pt'}: the same call goes on from ther" in text
    rows = {name: rows_in(whole / name) for name in (f"run.rank{r}of3.pt" for r in range(3))}
    assert [len(rows[name][0]) for name in sorted(rows)][::2] == [21, 20]  # their whole shares
    assert 0 < len(rows["run.rank1of3.pt"][0]) < 20

    for world in (2, 1):
        folder = tmp_path / str(world)
        shutil.copytree(whole, folder)
        for rank in ended(started("ensemble", world, folder), folder):
            # passes, too: what was done before counts once
            assert comparable(rank["ensemble"], passes=True) == comparable(undisturbed, passes=True)
        assert [path.name for path in folder.glob("run*")] == ["run.pt"]


def test_killed_at_three_then_at_two_processes_one_ends_in_the_same_bits(undisturbed, tmp_path):
    finished: set[int] = set()
    for world, at_least in ((3, 1), (2, 25)):
        processes = started("ensemble", world, tmp_path, pace=0.03)

        def ready(files, at_least=at_least) -> bool:
            done = [i for ids, _ in files.values() for i in ids]
            assert len(done) == len(set(done))  # no sample is in two files
            return len(done) >= at_least and any(begun for _, begun in files.values())

        wait_for(tmp_path, ready, processes)
        for process in processes:  # all at once: one that is left would finish what it has begun
            process.kill()
        for process in processes:
            process.communicate()
        rows = [rows_in(path) for path in tmp_path.glob("run*.pt")]
        now = {i for ids, _ in rows for i in ids}
        assert now >= finished and len(now) < sharded_runs.N and any(begun for _, begun in rows)
        finished = now
    (rank,) = ended(started("ensemble", 1, tmp_path), tmp_path)
    assert comparable(rank["ensemble"], passes=True) == comparable(undisturbed, passes=True)
