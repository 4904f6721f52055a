"""`--run`: what `fastadv train` wrote is evaluated and attacked by its folder alone."""

import json
import warnings

import numpy as np
import pytest
import torch
from command_line import arrays, run

import fastadv
from fastadv.data import load_digits
from fastadv.recipes import recipe, train, training_data
from fastadv.training import TrainingWarning


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of one epoch on 120 digits."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    images, labels = training_data("digits")
    chosen = recipe("digits", "fast", epochs=1, eps=0.1, on_collapse="warn")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TrainingWarning)
        train(chosen, (images[:120], labels[:120]), folder, progress=False)
    return folder


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_is_evaluated_at_its_own_radius_on_the_digits(trained, folder, capsys):
    options = ["--attack", "pgd", "--n", "30", "--out", "r.json", "--report", "r.html"]
    code, out, _ = run(capsys, ["evaluate", "--run", str(trained), "--data", "digits", *options])
    assert code == 0 and "saved r.json, r.html" in out
    x, y = load_digits("test")
    net = fastadv.load_run(trained).model
    report = fastadv.evaluate(net, (x[:30], y[:30]), fastadv.pgd(fastadv.Linf(0.1)))
    assert (
        json.loads((folder / "r.json").read_text())["samples"]["robust"] == report.robust.tolist()
    )
    assert (folder / "r.html").exists()


def test_a_run_is_attacked_in_another_norm_in_any_case(trained, capsys):
    options = ["--data", "digits", "--n", "12", "--out", "adv.npz", "--norm", "L2", "--eps", "0.5"]
    code, out, _ = run(capsys, ["attack", "--run", str(trained), *options])
    assert code == 0 and "fastadv.pgd(fastadv.L2(0.5))" in out
    x, y = load_digits("test")
    attack = fastadv.pgd(fastadv.L2(0.5))
    expected = attack.run(fastadv.load_run(trained).model, x[:12], y[:12])
    assert np.array_equal(arrays("adv.npz")["x_adv"], expected.x_adv.numpy())


def test_other_weights_of_a_run(trained, capsys):
    torch.save(torch.load(trained / "best.pt", weights_only=True), "mine.pt")
    options = ["--weights", "mine.pt", "--data", "digits", "--n", "4", "--attack", "fgsm"]
    assert run(capsys, ["evaluate", "--run", str(trained), *options])[0] == 0


def test_weights_of_a_file_in_a_network_of_ones_own(trained, capsys):
    options = ["--data", "digits", "--n", "20", "--attack", "fgsm", "--eps", "0.1"]
    own = ["--model", "fastadv.models:digits_net", "--weights", str(trained / "model.pt")]
    code, out, _ = run(capsys, ["evaluate", *own, "--device", "cpu", *options])
    assert code == 0
    _, of_run, _ = run(capsys, ["evaluate", "--run", str(trained), *options])
    accuracy = [line for line in of_run.splitlines() if "accuracy" in line]
    assert accuracy == [line for line in out.splitlines() if "accuracy" in line]
    (trained / "other.pt").write_bytes(b"")
    own[-1] = str(trained / "other.pt")
    code, _, err = run(capsys, ["evaluate", *own, *options])
    assert code == 2 and err.startswith("fastadv: --weights: ") and "nothing of it was run" in err


def test_what_a_run_lacks_is_said_by_its_option(trained, folder, capsys):
    for more, message in (
        (["--run", "."], "--run: . holds no run of fastadv train: no such file: log.jsonl"),
        ([], "which model: give --model module:function, or --run FOLDER of a training"),
        (["--run", str(trained), "--norm", "l2"], "--eps is needed with --norm l2"),
        (["--run", str(trained), "--weights", "no.pt"], "--run: no such file: no.pt"),
        (["--run", str(trained), "--device", "abacus"], "--device abacus cannot be used here: "),
    ):
        arguments = ["evaluate", "--data", "digits", "--attack", "fgsm", *more]
        if not more:
            arguments += ["--eps", "0.1"]
        code, out, err = run(capsys, arguments)
        assert (code, out) == (2, "") and err.startswith(f"fastadv: {message}"), err
