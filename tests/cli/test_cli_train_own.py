"""`fastadv train` on networks and samples of one's own, in other norms, for more epochs."""

import sys

import numpy as np
import pytest
import torch
from command_line import arrays, run

from fastadv.cli import training_samples
from fastadv.recipes import recipe, run_log, training_data
from fastadv.recipes import run as runs

NETS = """
import torch

def three():
    torch.manual_seed(0)
    layers = torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 3)
    return torch.nn.Sequential(*layers)

def samples():
    x = torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return torch.utils.data.TensorDataset(x, torch.arange(60) % 3)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    (tmp_path / "nets_of_train_tests.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "nets_of_train_tests", raising=False)
    images, labels = training_data("digits")
    few = images[:96], labels[:96]
    monkeypatch.setattr(training_samples, "training_data", lambda dataset, data: few)
    yield tmp_path
    sys.modules.pop("nets_of_train_tests", None)


def command(*more: str, method="pgd", out="run") -> list[str]:
    options = ["--method", method, "--out", out, "--epochs", "1", "--batch-size", "24"]
    return ["train", *options, *more]


OWN = ["--model", "nets_of_train_tests:three", "--data", "nets_of_train_tests:samples"]


def test_a_network_and_samples_of_ones_own_in_l2_and_its_run_is_attacked(capsys):
    code, out, err = run(capsys, command(*OWN, "--norm", "L2", "--eps", "1/2"))
    assert code == 0 and err == "images are rounded to 8 bits, as which training keeps them\n"
    assert out.startswith("nets_of_train_tests:three by fastadv.training.PGDAT(fastadv.L2(0.5)")
    assert "samples of nets_of_train_tests:samples (12 held out)" in out
    attack = ["attack", "--run", "run", "--data", OWN[3], "--n", "5", "--out", "adv.npz"]
    code, _, err = run(capsys, attack)
    assert code == 2 and "give --model module:function too" in err
    code, out, _ = run(capsys, [*attack, "--model", OWN[1]])
    assert code == 0 and "fastadv.pgd(fastadv.L2(0.5))" in out
    assert arrays("adv.npz")["x_adv"].shape == (5, 1, 8, 8)


@pytest.mark.parametrize("method", ["fast", "free", "nfgsm", "trades", "mart", "yopo"])
def test_every_method_trains_in_l1_or_says_that_it_does_not(capsys, method):
    code, out, err = run(capsys, command("--norm", "l1", "--eps", "2", method=method))
    if method == "nfgsm":
        assert code == 2 and "is defined for fastadv.Linf only" in err
    else:
        assert code == 0 and "fastadv.L1(2.0)" in out and "saved run/model.pt" in out


def test_own_archives_of_bytes_and_what_does_not_fit_them(capsys):
    x = (torch.rand(30, 1, 8, 8) * 255).byte().numpy()
    np.savez("own.npz", images=x, labels=np.arange(30)[:, None] % 2)
    code, out, err = run(capsys, command("--data", "own.npz"))
    assert code == 0 and err == "" and "samples of own.npz (6 held out)" in out
    assert torch.load("run/model.pt", weights_only=True)["7.weight"].shape == (2, 64)
    np.savez("four.npz", x=x, y=np.arange(30) % 4)
    np.savez("flat.npz", x=np.zeros((30, 5), np.float32), y=np.arange(30) % 4)
    np.savez("wide.npz", x=2 * np.ones((30, 1, 8, 8), np.float32), y=np.arange(30) % 4)
    for more, message in (
        ((*OWN[:2], "--data", "four.npz"), "has 3 classes, and the labels 4"),
        (("--data", "flat.npz"), "--data: train takes images (N, C, H, W); got samples of shape"),
        (("--data", "wide.npz"), "--data: floats must lie in [0, 1]; got 2 to 2"),
        (("--norm", "l2"), "--eps is needed with norm='l2'"),
        (("--weights", "w.pt"), "--weights needs a --model of one's own"),
    ):
        code, out, err = run(capsys, command(*more, out="other"))
        assert (code, out) == (2, "") and message in err, err


def test_epochs_given_are_never_exceeded_unless_a_rollback_is_asked_for():
    assert recipe("mnist", "fast").on_collapse == "rollback"
    assert recipe("mnist", "fast", epochs=2).on_collapse == "warn"
    assert recipe("mnist", "fast", epochs=2, on_collapse="rollback").on_collapse == "rollback"


def test_more_epochs_on_resuming_go_on_where_the_run_ended(capsys):
    code, out, _ = run(capsys, command("--resume"))  # as a job that is sent again and again
    assert code == 0 and out.splitlines()[0] == "nothing to go on from in run: begins"
    code, out, _ = run(capsys, command("--resume"))
    header, finished, *_ = out.splitlines()
    assert header.startswith("digits by fastadv.training.PGDAT(")
    assert finished.startswith("has finished: 1 epochs; resume with more of them")
    code, out, _ = run(capsys, command("--resume", "--epochs", "3"))
    assert code == 0 and out.splitlines()[1] == "goes on in epoch 2 of 3, after 0 of its 4 batches"
    rows = run_log.read_log("run/log.jsonl")
    assert [row["epoch"] for row in rows if row["event"] == "epoch"] == [1, 2, 3]
    code, _, err = run(capsys, command("--resume", "--epochs", "2"))
    assert code == 2 and "another recipe: epochs is 3 there and 2 here" in err
    assert all(row["said"] for row in rows if row["event"] == "check")


def test_an_interrupted_run_says_what_is_kept_and_the_command_that_goes_on(capsys, monkeypatch):
    save, calls = runs.save_run, []

    def stop(*arguments):
        save(*arguments)
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(runs, "save_run", stop)
    code, _, err = run(capsys, command("--checkpoint-every", "1"))
    *_, said, goes_on = err.splitlines()
    assert code == 130 and said.startswith("fastadv: interrupted: run/last.pt has 0 of 1 epochs, ")
    assert goes_on == f"  fastadv {' '.join(command('--checkpoint-every', '1'))} --resume"
    monkeypatch.setattr(runs, "save_run", save)
    assert run(capsys, goes_on.split()[1:])[0] == 0
