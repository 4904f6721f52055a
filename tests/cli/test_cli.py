"""The command line: files in, verified examples out."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import fastadv
from fastadv.data import to_unit_interval
from fastadv.models import digits_net
from fastadv.ops import compiled

pytest.importorskip("typer", reason="needs typer")
pytest.importorskip("rich", reason="needs rich")
from command_line import arrays, command, run

from fastadv.cli import choices, sources  # noqa: E402
from fastadv.cli.numbers import number  # noqa: E402


@pytest.mark.parametrize(
    ("text", "value"),
    [("8/255", 8 / 255), ("0.03", 0.03), ("1e-3", 1e-3), (" 3 / 16 ", 0.1875), ("2", 2.0)],
)
def test_numbers_may_be_fractions(text, value):
    assert number("eps", text) == value


def test_what_is_saved_is_what_the_library_finds(folder, capsys):
    code, out, _ = run(
        capsys, command("--steps", "4", "--restarts", "2", "--seed", "3", "--report", "r.json")
    )
    assert code == 0
    x, y = (torch.from_numpy(arrays("digits.npz")[k]) for k in ("x", "y"))
    attack = fastadv.pgd(fastadv.Linf(0.1), steps=4, restarts=2, seed=3)
    net = digits_net(3)
    expected = attack.run(net, x, y)
    saved = arrays("adv.npz")
    assert saved["x_adv"].dtype == np.float32
    assert np.array_equal(saved["x_adv"], expected.x_adv.numpy())
    for name in ("success", "prediction", "clean_prediction", "distance", "step"):
        assert np.array_equal(saved[name], getattr(expected, name).numpy()), name
    report = json.loads((folder / "r.json").read_text())
    assert report["attack"] == repr(attack) and report["n"] == 40
    known = expected.clean_prediction == y
    fooled = int((expected.success & known).sum())
    assert f"fooled {fooled} of the {int(known.sum())} samples" in out and "saved adv.npz" in out


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_bytes_are_in_the_ball_and_verified_as_saved(folder, capsys, norm):
    eps = {"linf": "8/255", "l2": "0.6", "l1": "2.5"}[norm]
    code, out, _ = run(capsys, command("--uint8", "--norm", norm, data="bytes.npz", eps=eps))
    assert code == 0
    saved, raw = arrays("adv.npz"), arrays("bytes.npz")
    assert saved["x_adv"].dtype == np.uint8
    threat = choices.make_threat(norm, number("eps", eps))
    decoded = to_unit_interval(torch.from_numpy(saved["x_adv"]))
    x = to_unit_interval(torch.from_numpy(raw["x"]))
    assert bool(fastadv.contains(threat, decoded, x).all())
    prediction = digits_net(3)(decoded).argmax(1)
    assert np.array_equal(saved["prediction"], prediction.numpy())
    assert np.array_equal(saved["success"], prediction.numpy() != raw["y"])
    assert np.array_equal(saved["distance"], threat.distance(decoded, x).numpy())
    floats = choices.make_attack("pgd", threat, {"seed": 0})
    found = floats.run(digits_net(3), x, torch.from_numpy(raw["y"].astype(np.int64))).success
    survived = int((found & torch.from_numpy(saved["success"])).sum())
    assert f"8 bits: {survived} of {int(found.sum())} successes survive" in out


def test_a_target_is_reached_as_the_library_says(folder, capsys):
    others = arrays("digits.npz")["y"] != 2
    said = f"target_is_label: {int((~others).sum())} of 40"
    code, out, _ = run(capsys, command("--target", "2", "--attack", "bim", eps="0.9"))
    assert said in out
    saved = arrays("adv.npz")
    assert code == 0
    assert np.array_equal(saved["success"], (saved["prediction"] == 2) & others)
    assert saved["success"].any()
    assert f"target reached for {int(saved['success'].sum())} of 40 samples" in out
    code, _, _ = run(capsys, command("--target", "least_likely", "--uint8", data="bytes.npz"))
    assert code == 0


def test_a_rule_for_targets_survives_rounding_with_its_own_targets(folder, capsys):
    code, _, _ = run(
        capsys, command("--target", "second_best", "--uint8", data="bytes.npz", eps="0.3")
    )
    saved, raw = arrays("adv.npz"), arrays("bytes.npz")
    logits = digits_net(3)(to_unit_interval(torch.from_numpy(raw["x"])))
    logits[torch.arange(40), torch.from_numpy(raw["y"].astype(np.int64))] = -torch.inf
    assert code == 0 and saved["success"].any()
    assert np.array_equal(saved["success"], saved["prediction"] == logits.argmax(1).numpy())


def test_the_first_n_samples(folder, capsys):
    assert run(capsys, command("--n", "7", "--attack", "fgsm"))[0] == 0
    assert arrays("adv.npz")["x_adv"].shape == (7, 1, 8, 8)


def test_mnist_and_cifar_folders_are_told_apart(folder):
    images = torch.arange(2 * 28 * 28).remainder(256).byte().view(2, 28, 28)
    for name, content, shape in (
        ("t10k-images-idx3-ubyte", images, (2, 28, 28)),
        ("t10k-labels-idx1-ubyte", torch.tensor([3, 4], dtype=torch.uint8), (2,)),
    ):
        header = bytes([0, 0, 8, len(shape)]) + np.array(shape, ">u4").tobytes()
        (folder / "mnist").mkdir(exist_ok=True)
        (folder / "mnist" / name).write_bytes(header + content.numpy().tobytes())
    cifar = folder / "cifar" / "cifar-10-batches-bin"
    cifar.mkdir(parents=True)
    (cifar / "test_batch.bin").write_bytes(bytes([9]) + bytes(range(256)) * 12)
    x, y = sources.load_data(folder / "mnist", "auto", "test", None)
    assert torch.equal(x, to_unit_interval(images)[:, None]) and y.tolist() == [3, 4]
    x, y = sources.load_data(folder / "cifar", "auto", "test", None)
    assert x.shape == (1, 3, 32, 32) and x.flatten()[255] == 1.0 and y.tolist() == [9]
    x, _ = sources.load_data(cifar, "cifar10", "test", 1)
    assert len(x) == 1


def test_the_version(capsys):
    assert run(capsys, ["--version"]) == (0, f"fastadv {fastadv.__version__}\n", "")


def test_info_says_which_backend_would_run_and_why(capsys):
    code, out, _ = run(capsys, ["info"])
    lines = dict(line.split("  ", 1) for line in out.splitlines())
    lines = {name.strip(): value.strip() for name, value in lines.items()}
    assert code == 0
    assert lines["fastadv"] == fastadv.__version__ and lines["torch"] == torch.__version__
    with fastadv.ops.use_backend("reference"):
        _, out, _ = run(capsys, ["info"])
    assert "reference: chosen by use_backend or FASTADV_BACKEND" in out
    if not torch.cuda.is_available():
        why = "Triton needs a GPU, and tensors are on cpu"
        loops = "loops compiled by numba, numpy paths or eager references of the other ops"
        paths = "numpy paths, and eager references of the other ops"
        assert lines["backend on cpu"] == (
            f"{paths}: {why}; {compiled.why_not()}" if compiled.why_not() else f"{loops}: {why}"
        )
        with compiled.hidden():
            _, out, _ = run(capsys, ["info"])
        assert f"{paths}: {why}" in out


def test_info_says_why_nothing_would_run(capsys, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    pytest.importorskip("triton", reason="needs triton")
    with fastadv.ops.use_backend("triton"):
        code, out, _ = run(capsys, ["info"])
    assert code == 0 and "none: backend 'triton' was chosen for tensors on cpu" in out


def test_the_module_runs_from_a_shell_in_the_current_directory(folder):
    root = os.path.dirname(os.path.dirname(fastadv.__file__))
    result = subprocess.run(
        [sys.executable, "-m", "fastadv", *command("--n", "4", "--attack", "fgsm")],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "fooled" in result.stdout and (folder / "adv.npz").exists()
