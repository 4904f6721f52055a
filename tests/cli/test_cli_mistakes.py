"""Mistakes of `fastadv attack`: one line and exit code 2."""

import os
import subprocess
import sys

import numpy as np
import pytest

import fastadv

pytest.importorskip("typer", reason="needs typer")
pytest.importorskip("rich", reason="needs rich")
from command_line import command, run

from fastadv.cli import entry as cli


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (command(eps="8"), "--eps 8 is larger than the box"),
        (command(eps="eight"), "--eps must be a number such as 0.03 or 8/255; got 'eight'"),
        (command(eps="1/0"), "--eps must be a number such as"),
        (command("--attack", "ddn"), "--attack ddn takes --norm l2; got linf"),
        (
            command("--attack", "pgd", eps="inf"),
            "--eps inf is for attacks that look for the nearest example, as minimum_norm and fmn",
        ),
        (command("--device", "cdua"), "--device cdua cannot be used here: torch knows no such"),
        (command("--norm", "l3"), "--norm must be one of linf, l2, l1, l0; got 'l3'"),
        (command("--attack", "nosuch"), "--attack must be one of alma, apgd"),
        (command("--attack", "fgsm", "--restarts", "2"), "--restarts does not apply to fgsm"),
        (
            command("--attack", "minimum-norm", "--budget", "20"),
            "minimum_norm needs a budget of at least 60 passes a sample",
        ),
        (command("--budget", "100"), "--budget does not apply to pgd"),
        (command("--steps", "0"), "--steps must be an integer of at least 1; got 0"),
        (command("--loss", "hinge"), "--loss must be one of"),
        (command("--target", "first"), "--target must be a (B,) tensor or one of"),
        (command("--target", "12"), "--target must lie in [0, 10)"),
        (command("--n", "41"), "--n must be 1 to 40"),
        (
            command("--format", "png"),
            "--format must be one of auto, npz, pt, mnist",
        ),
        (command("--format", "mnist", data="."), "--data must hold t10k-images-idx3-ubyte"),
        (command(data="."), "nothing in the folder . is recognised: looked for MNIST files"),
        (
            command(data="."),
            "CIFAR-10 files (test_batch, test_batch.bin) and a folder of",
        ),
        (
            command("--batch-size", "16", model="for_small_batches"),
            "attacking 16 samples at once fails: RuntimeError: too many",
        ),
        (command(data="nowhere.npz"), "--data: no such file: nowhere.npz"),
        (
            command(data="nets_of_cli_tests.py"),
            "nets_of_cli_tests.py is not a readable npz file: it holds other things than arrays",
        ),
        (command(data="digit.PNG"), "digit.PNG is one image: give a folder that has one folder a"),
        (command(model="missing"), "'nets_of_cli_tests' has no function 'missing'"),
        (
            command(model="SIZE"),
            "'nets_of_cli_tests' has no function 'SIZE', but an object, int: name a function that",
        ),
        (command(model="network"), "no function 'network', but an object, DigitsNet: name a"),
        (["attack", "--model", "nets.py:f", *command()[3:]], "a module has no .py: nets:f"),
        (command(data="nets_of_cli_tests:digits"), "must return a Dataset of (x, y) pairs"),
        (
            command(model="broken"),
            "nets_of_cli_tests:broken() fails: RuntimeError: no weights here",
        ),
        (command(model="number"), "must return a model; got int"),
        (command("--report", "r.txt"), "--report must end in .json or .md or .html; got r.txt"),
        (command("--report", "no/r.md"), "--report: there is no folder no"),
        (command("--report", "r.md", "--target", "1"), "leave out --target"),
        (["attack", "--model", "nowhere", *command()[3:]], "--model must be module:function"),
        (["attack", "--model", "nowhere:f", *command()[3:]], "importing 'nowhere' fails"),
        (
            [*command()[:-1], "adv.npy"],
            "--out must end in .npz, or be a folder for PNG",
        ),
    ],
    ids=lambda value: " ".join(value[7:]) if isinstance(value, list) else "",
)
def test_mistakes_are_one_line_and_exit_code_two(folder, capsys, arguments, message):
    code, out, err = run(capsys, arguments)
    assert code == 2 and out == ""
    assert err.startswith("fastadv: ") and message in err
    assert len(err.splitlines()) == 1 and not (folder / "adv.npz").exists()


def test_data_that_do_not_fit_the_model_are_said_in_one_line(folder, capsys):
    np.savez("flat.npz", x=np.zeros((3, 5), np.float32), y=np.zeros(3, np.int64))
    code, _, err = run(capsys, command(data="flat.npz"))
    assert code == 2 and len(err.splitlines()) == 1
    assert "the model fails on one sample, (1, 5): RuntimeError" in err


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((2, 1))}, "must hold the arrays x and y"),
        ({"x": np.zeros((2, 1), np.int32), "y": np.zeros(2, int)}, "x must be bytes or floats"),
        ({"x": np.zeros((0, 1)), "y": np.zeros(0, int)}, "--data: it holds no samples"),
        ({"x": np.zeros((2, 1)), "y": np.zeros(3, int)}, "y must be 2 integers"),
        ({"x": np.zeros((2, 1)), "y": np.zeros(2)}, "y must be 2 integers"),
        ({"x": np.array(0.5), "y": np.array(1)}, "x must have one row a sample; got a scalar"),
        ({"x": np.array(0.5), "y": np.zeros(1, int)}, "x must have one row a sample"),
        ({"x": np.zeros((2, 1)), "y": np.array(1)}, "y must be 2 integers"),
        ({"x": np.array([print], object), "y": np.zeros(1, int)}, "Object arrays cannot be loaded"),
    ],
)
def test_bad_arrays_are_refused(folder, capsys, arrays, message):
    np.savez("bad.npz", **arrays)
    code, _, err = run(capsys, command(data="bad.npz"))
    assert code == 2 and message in err and len(err.splitlines()) == 1


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_said_in_one_line(folder, capsys, share):
    content = (folder / "digits.npz").read_bytes()
    (folder / "cut.npz").write_bytes(content[: int(share * len(content))])
    code, _, err = run(capsys, command(data="cut.npz"))
    assert code == 2 and "cut.npz is not a readable npz file" in err and len(err.splitlines()) == 1


def test_a_backend_that_cannot_run_is_said_in_one_line(folder, capsys, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    pytest.importorskip("triton", reason="needs triton")
    with fastadv.ops.use_backend("triton"):
        code, out, err = run(capsys, command())
    assert code == 2 and out == "" and len(err.splitlines()) == 1
    assert err.startswith("fastadv: backend 'triton' was chosen for tensors on cpu: move them")


def test_an_unknown_option_and_no_command_exit_with_two(folder, capsys):
    for arguments in (command("--epsilon", "1"), ["attacks"], ["attack"]):
        code, _, err = run(capsys, arguments)
        assert code == 2 and "Error: " in err and "Traceback" not in err


@pytest.mark.parametrize("name", ["typer", "rich"])
def test_a_missing_extra_is_named_with_the_remedy(name, capsys, monkeypatch):
    def import_module(_: str):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(cli.importlib, "import_module", import_module)
    code, _, err = run(capsys, ["info"])
    assert code == 2
    remedy = 'pip install "typer>=0.15" "rich>=13"'
    assert err == f"fastadv: the command line needs {name}: {remedy}\n"


def test_info_names_a_wrong_backend_variable():
    environment = os.environ | {"FASTADV_BACKEND": "foo"}
    done = subprocess.run(
        [sys.executable, "-m", "fastadv", "info"], env=environment, capture_output=True, text=True
    )
    assert "FASTADV_BACKEND must be one of" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
