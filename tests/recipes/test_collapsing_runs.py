"""Runs that collapse: stopped by name, rolled back, trained on; the last good weights are kept."""

import math

import pytest
from small_runs import loaded, rows_without_times, small_data, small_recipe

from fastadv.recipes import train
from fastadv.recipes.progress import epoch_line
from fastadv.recipes.run_log import read_log
from fastadv.training import Collapse, TrainingWarning

pytestmark = pytest.mark.usefixtures("unwarned")

# the fifth update is the first too large: the sentinel, after every fourth batch, saw good weights
EXPLODES = ((0.0, 1e-2), (1.5, 1e-2), (1.5, 1e30), (3.0, 1e30))
ASLEEP = ((0.0, 1e-9), (3.0, 1e-9))


def test_a_stuck_run_is_stopped_by_name_with_the_last_good_weights(tmp_path):
    chosen = small_recipe(learning_rate=ASLEEP, on_collapse="stop")
    with pytest.raises(Collapse, match="stuck: the network answers one class after batch 4"):
        train(chosen, small_data(), tmp_path, progress=False)
    (last,) = rows_without_times(tmp_path)[-1:]
    assert (last["event"], last["code"]) == ("stopped", "stuck") and "ln(C)" in last["message"]
    assert not (tmp_path / "model.pt").exists() and (tmp_path / "good.pt").exists()
    with pytest.raises(Collapse, match="stuck"):  # as an uninterrupted run
        train(chosen, small_data(), tmp_path, progress=False, resume=True)


def test_a_stuck_run_that_only_warns_goes_on_to_its_end(tmp_path):
    with pytest.warns(TrainingWarning, match="stuck: the network answers one class"):
        train(small_recipe(learning_rate=ASLEEP), small_data(), tmp_path, progress=False)
    assert (tmp_path / "model.pt").exists()


def test_nan_is_named_and_the_last_good_weights_are_kept(tmp_path):
    chosen = small_recipe(learning_rate=EXPLODES, sentinel_every=1.4, on_collapse="stop")
    with pytest.raises(Collapse, match="nan: the training loss is not finite"):
        train(chosen, small_data(), tmp_path, progress=False)
    for name in ("good.pt", "best.pt"):
        assert all(bool(value.isfinite().all()) for value in loaded(tmp_path / name).values())


def test_nan_is_rolled_back_and_the_run_ends_with_finite_weights(tmp_path):
    chosen = small_recipe(
        learning_rate=EXPLODES,
        sentinel_every=1.4,
        on_collapse="rollback",
        rescue_epochs=2,
        rescue_learning_rate=2e-2,
    )
    with pytest.warns(TrainingWarning, match="nan: the training loss is not finite"):
        result = train(chosen, small_data(), tmp_path, progress=False)
    assert any(row["event"] == "rollback" for row in result.rows)
    weights = loaded(tmp_path / "model.pt")
    assert all(bool(value.isfinite().all()) for value in weights.values())
    assert math.isfinite(float(result.epochs[-1]["loss"]))


def test_a_weak_network_is_trained_on_after_the_last_epoch(tmp_path):
    chosen = small_recipe(on_collapse="rollback", floor=0.99, rescue_epochs=2, sentinel_every=9.0)
    with pytest.warns(TrainingWarning, match="weak: .* under PGD-10 is below the floor of 99 %"):
        result = train(chosen, small_data(), tmp_path, progress=False)
    assert [row["epoch"] for row in result.epochs] == [1, 2, 3, 4, 5]
    assert ["PGDAT" in row["step"] for row in result.epochs] == [False] * 3 + [True] * 2
    assert [row["rescue"] for row in result.epochs] == [False] * 3 + [True] * 2
    assert "sentinel: rescue under way, " in epoch_line(result.epochs[-1], epochs=5)
    weak = [row["said"] for row in result.rows if row.get("verdict") == "weak"]
    words = " under PGD-10 is below the floor of 99 % (5 restarts, 24 held-out samples, "
    assert weak and all(words in said for said in weak)
    events = [row["event"] for row in result.rows]
    assert events[events.index("rollback") - 1] == "check" and events[-1] == "finished"


def test_a_run_that_ends_in_nan_is_no_success_and_keeps_the_last_good_weights(tmp_path):
    chosen = small_recipe(learning_rate=EXPLODES, sentinel_every=1.4)
    with (
        pytest.warns(TrainingWarning, match="nan: the training loss is not finite"),
        pytest.raises(Collapse, match="final weights are not finite: good.pt has the last good"),
    ):
        train(chosen, small_data(), tmp_path, progress=False)
    epochs = [row for row in read_log(tmp_path / "log.jsonl") if row["event"] == "epoch"]
    assert (epochs[-1]["clean"], epochs[-1]["robust"]) == (0.0, 0.0)
    assert epochs[-1]["loss"] == "nan" and not (tmp_path / "model.pt").exists()
    for name in ("good.pt", "best.pt"):  # best.pt: of the first epoch, not of one of NaN
        assert all(bool(value.isfinite().all()) for value in loaded(tmp_path / name).values())
