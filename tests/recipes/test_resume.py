"""Killed at any point and resumed, a run ends with the bits of one that was not."""

import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from forked import Forked
from small_runs import assert_same_run, rows_without_times, small_data, small_recipe

from fastadv.recipes import run, train
from fastadv.recipes.run_log import RunLog, read_log

RUNS = {
    "fast": small_recipe(ema=0.9),
    "free": small_recipe("free", replays=2),
    "yopo": small_recipe("yopo", optimizer="sgd", momentum=0.9, crop=1, flip="alternate"),
    # nothing is learnt: stuck at the second check, in the middle of the second epoch
    "rescue": small_recipe(
        learning_rate=((0.0, 1e-9), (3.0, 1e-9)),
        on_collapse="rollback",
        ema=0.9,
        batch_size=12,
        sentinel_every=0.75,
        rescue_epochs=2,
        rescue_learning_rate=1e-2,
        eps=0.05,
        seed=1,
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_from_every_checkpoint_and_with_a_longer_log(name, tmp_path, monkeypatch, unwarned):
    whole = tmp_path / "whole"
    snapshots = []

    def snapshot(*arguments):
        """What kill -9 leaves after the rows of a batch are logged, before their checkpoint is."""
        snapshots.append(tmp_path / f"killed{len(snapshots)}")
        shutil.copytree(whole, snapshots[-1])
        save(*arguments)

    save = run.save_run
    monkeypatch.setattr(run, "save_run", snapshot)
    train(RUNS[name], small_data(), whole, progress=False, checkpoint_every=1)
    monkeypatch.setattr(run, "save_run", save)
    events = [row["event"] for row in rows_without_times(whole)]
    assert ("rollback" in events) == (name == "rescue") and "check" in events
    assert len(snapshots) >= 12  # 9 batches and 3 epochs
    assert not (snapshots[0] / "last.pt").exists() and (snapshots[1] / "last.pt").exists()
    # all of them for one method; of the others before the first, inside and at the end of epochs
    for killed in snapshots[:: 1 if name == "fast" else 5]:
        assert (killed / "log.jsonl").stat().st_size > 0
        train(RUNS[name], small_data(), killed, progress=False, resume=True)
        assert_same_run(killed, whole)


def test_a_rescue_is_resumed_with_its_own_step_and_schedule(tmp_path, unwarned):
    class Killed(Exception):
        pass

    def kill(row):
        if row["epoch"] == 2:
            raise Killed

    with pytest.raises(Killed):
        train(RUNS["rescue"], small_data(), tmp_path / "a", progress=False, on_epoch=kill)
    result = train(RUNS["rescue"], small_data(), tmp_path / "a", progress=False, resume=True)
    (last,) = [row for row in result.rows if row["event"] == "rollback"][-1:]
    assert len(result.epochs) == last["epochs"] > 3
    assert [row["learning_rate"] for row in result.epochs[:1]] == [1e-9]
    assert all("PGDAT" in row["step"] for row in result.epochs[1:])
    since = (
        result.epochs[1]["batches"] - last["batch"]
    )  # the rate rises over the warm-up, 5 batches
    assert result.epochs[1]["learning_rate"] == pytest.approx(1e-2 * since / 5) and since == 4
    saved = torch.load(tmp_path / "a" / "last.pt", weights_only=True)
    since = saved["position"]["batches"] - saved["position"]["rescued_at"]
    assert int(saved["average"]["n_averaged"]) == since  # nothing of what was undone is in it
    assert result.epochs[-1]["learning_rate"] == 0.0 and result.epochs[-1]["eps"] == 0.05


def command(out: Path) -> list[str]:
    return [
        "train",
        "--method",
        "fast",
        "--epochs",
        "4",
        "--out",
        str(out),
        "--resume",
        "--checkpoint-every",
        "3",
        "--threads",
        "1",
        "--ema",
        "0.9",
    ]


def rows_of(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_kill_nine_at_random_moments_and_resume_equals_uninterrupted(tmp_path):
    commands = pytest.importorskip("fastadv.cli.app", reason="needs typer and rich")
    out, chance = tmp_path / "killed", random.Random(0)
    log = out / "log.jsonl"
    for wanted in (1, 2, 4):  # rows in the log: the header first, before any checkpoint
        with Forked("-m", "fastadv", *command(out)) as process:
            deadline = time.monotonic() + 100
            while rows_of(log) < wanted and process.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.002)
            time.sleep(chance.uniform(0, 0.2))
            process.kill()
        assert process.returncode == -signal.SIGKILL and not (out / "model.pt").exists()
    assert commands.run(command(out)) == commands.run(command(tmp_path / "whole")) == 0
    assert_same_run(out, tmp_path / "whole")


def test_a_finished_run_is_returned_and_not_trained_on(tmp_path, monkeypatch, unwarned):
    first = train(small_recipe(), small_data(), tmp_path, progress=False)
    monkeypatch.setattr(run._Run, "go_on", lambda self: pytest.fail("trained again"))
    again = train(small_recipe(), small_data(), tmp_path, progress=False, resume=True)
    assert again.rows == first.rows and again.best_epoch == first.best_epoch
    weights = first.model.state_dict()
    for name, value in again.model.state_dict().items():
        assert torch.equal(value, weights[name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(eps=0.1), "belongs to another recipe: eps is 0.18 there and 0.1 here"),
        (dict(seed=1), "belongs to another recipe: seed is 0 there and 1 here"),
        (dict(on_collapse="stop"), "on_collapse is 'warn' there and 'stop' here"),
    ],
)
def test_another_recipe_is_refused_by_the_names_of_what_differs(
    change, message, tmp_path, unwarned
):
    train(small_recipe(), small_data(), tmp_path, progress=False)
    with pytest.raises(ValueError, match=message):
        train(small_recipe(**change), small_data(), tmp_path, progress=False, resume=True)


def test_other_data_other_code_and_a_damaged_checkpoint_are_refused(
    tmp_path, monkeypatch, unwarned
):
    images, labels = small_data()
    train(small_recipe(), (images, labels), tmp_path, progress=False)
    with pytest.raises(ValueError, match="belongs to other data"):
        train(small_recipe(), (255 - images, labels), tmp_path, progress=False, resume=True)
    with pytest.raises(ValueError, match="belongs to other data"):
        train(small_recipe(), (images, labels.flip(0)), tmp_path, progress=False, resume=True)
    monkeypatch.setattr("fastadv.recipes.run_state.__version__", "9.9")
    with pytest.raises(ValueError, match="another version of fastadv: 0.1.0, not 9.9"):
        train(small_recipe(), (images, labels), tmp_path, progress=False, resume=True)
    (tmp_path / "last.pt").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="last.pt is not a checkpoint of fastadv.recipes.train"):
        train(small_recipe(), (images, labels), tmp_path, progress=False, resume=True)
    torch.save({"format": 0}, tmp_path / "last.pt")
    with pytest.raises(ValueError, match="is not a checkpoint of this version"):
        train(small_recipe(), (images, labels), tmp_path, progress=False, resume=True)


def test_a_folder_with_a_run_is_not_overwritten(tmp_path, unwarned):
    train(small_recipe(), small_data(), tmp_path, progress=False)
    before = (tmp_path / "model.pt").read_bytes()
    with pytest.raises(ValueError, match=r"holds a run already \(last.pt, model.pt\). Resume it"):
        train(small_recipe(), small_data(), tmp_path, progress=False)
    assert (tmp_path / "model.pt").read_bytes() == before


def test_the_log_is_cut_back_to_what_is_covered_and_never_made_up(tmp_path):
    path = tmp_path / "log.jsonl"
    log = RunLog(path, length=0)
    log.append("epoch", loss=float("nan"), knots=((0.0, float("inf")),))
    covered = log.length
    log.append("check", batch=3)
    path.write_bytes(path.read_bytes() + b'{"half a')
    assert [row["event"] for row in read_log(path)] == ["epoch", "check"]
    assert RunLog(path, length=covered).length == covered == path.stat().st_size
    assert read_log(path) == [{"event": "epoch", "loss": "nan", "knots": [[0.0, "inf"]]}]
    with pytest.raises(ValueError, match=f"has {covered} bytes, and the checkpoint .* covers 999"):
        RunLog(path, length=999)
