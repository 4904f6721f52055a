"""`load_run`: the network, recipe and figures of a run's folder; nothing in it is executed."""

import pickle
import shutil
import warnings

import pytest
import torch
from small_runs import loaded, small_data, small_recipe

import fastadv
from fastadv.data import to_unit_interval
from fastadv.models import digits_net
from fastadv.recipes import load_weights, read_weights, train
from fastadv.recipes.sources import split
from fastadv.training import TrainingWarning

pytestmark = pytest.mark.usefixtures("unwarned")


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TrainingWarning)
        train(small_recipe(ema=0.9), small_data(), folder, progress=False)
    return folder


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_a_run_is_the_network_that_was_trained_its_recipe_and_its_figures(averaged):
    run = fastadv.load_run(averaged)
    assert run.recipe == small_recipe(ema=0.9) and not run.model.training
    assert same(run.model.state_dict(), loaded(averaged / "model.pt"))
    held = split(*small_data(), held_out=1000)
    attack = eval(run.held_out.attack, {"fastadv": fastadv})
    x = to_unit_interval(held.held_images)
    report = fastadv.evaluate(run.model, (x, held.held_labels), attack, progress=False)
    figures = run.held_out.clean, run.held_out.robust, run.held_out.n, run.held_out.epoch
    assert figures == (report.clean_accuracy, report.robust_accuracy, 24, 3)
    assert "digits by fast on digits, linf eps=0.18" in repr(run) and "% under" in repr(run)


def test_other_weights_of_the_run_have_their_own_figures(averaged):
    best = fastadv.load_run(averaged, weights=averaged / "best.pt")
    rows = [row for row in best.rows if row["event"] == "epoch"]
    assert best.held_out.robust == max(row["robust"] for row in rows)
    assert same(best.model.state_dict(), loaded(averaged / "best.pt"))


def test_averaged_and_parallel_weights_load_into_the_plain_network(averaged, tmp_path):
    saved = loaded(averaged / "last.pt")
    torch.save(saved["average"], tmp_path / "average.pt")  # as AveragedModel names them
    torch.save({"state_dict": saved["average"]}, tmp_path / "checkpoint.pt")
    for name in ("average.pt", "checkpoint.pt"):
        net = digits_net(7)
        load_weights(net, tmp_path / name)
        assert same(net.state_dict(), loaded(averaged / "model.pt"))
    writer = pytest.importorskip("safetensors.torch", reason="needs safetensors")
    writer.save_file(loaded(averaged / "model.pt"), tmp_path / "w.safetensors")
    assert same(read_weights(tmp_path / "w.safetensors"), loaded(averaged / "model.pt"))


class Trap:
    sprung = False

    def __reduce__(self):
        return (setattr, (Trap, "sprung", True))


def test_nothing_in_the_files_is_executed(averaged, tmp_path):
    shutil.copytree(averaged, tmp_path / "run")
    for content in (pickle.dumps(Trap()), b"not a file of torch"):
        (tmp_path / "run" / "model.pt").write_bytes(content)
        with pytest.raises(ValueError, match="nothing of it was run"):
            fastadv.load_run(tmp_path / "run")
    torch.save({"w": Trap()}, tmp_path / "run" / "model.pt")
    with pytest.raises(ValueError, match="nothing of it was run"):
        fastadv.load_run(tmp_path / "run")
    assert not Trap.sprung


def test_what_is_no_run_or_does_not_fit_is_named(averaged, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no run of fastadv train: no such file"):
        fastadv.load_run(tmp_path)
    shutil.copytree(averaged, tmp_path / "run")
    (tmp_path / "run" / "model.pt").unlink()
    with pytest.raises(FileNotFoundError, match="has not finished.* best weights so far are in"):
        fastadv.load_run(tmp_path / "run")
    with pytest.raises(ValueError, match="does not fit the DigitsNet: .*0.weight is"):
        fastadv.load_run(averaged, model=digits_net(width=8))
    with pytest.raises(ValueError, match=r"does not fit the Linear: it lacks weight, bias; it has"):
        fastadv.load_run(averaged, model=torch.nn.Linear(2, 2))
    (tmp_path / "run" / "log.jsonl").write_text(
        '{"event": "run", "recipe": {"eps": "import os"}}\n'
    )
    with pytest.raises(ValueError, match="is not the log of a run"):
        fastadv.load_run(tmp_path / "run")
