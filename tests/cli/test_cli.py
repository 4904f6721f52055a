"""The command line: files in, verified examples out, mistakes in one line and exit code 2."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import fastadv
from fastadv.data import load_digits, to_unit_interval
from fastadv.models import digits_net

pytest.importorskip("typer", reason="needs typer")
pytest.importorskip("rich", reason="needs rich")

from fastadv.cli import app as commands
from fastadv.cli import choices, sources  # noqa: E402
from fastadv.cli import entry as cli

NETS = """
import torch
from fastadv.models import digits_net

SIZE = 1

def digits():
    return digits_net(3)

def broken():
    raise RuntimeError("no weights\\nhere")

def number():
    return 3

def for_small_batches():
    class Net(torch.nn.Module):
        def forward(self, x):
            if len(x) > 8:
                raise RuntimeError("too\\nmany")
            return x.flatten(1)[:, :3]
    return Net()

def saturated():
    class Net(torch.nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :3] * 0
    return Net()
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A current directory with nets_of_cli_tests.py, digits.npz of floats and bytes.npz."""
    (tmp_path / "nets_of_cli_tests.py").write_text(NETS)
    x, _ = load_digits("test")
    x = x[:40]
    y = digits_net(3)(x).argmax(1).numpy()
    y[::5] = (y[::5] + 1) % 10  # some are wrong to begin with
    np.savez(tmp_path / "digits.npz", x=x.numpy(), y=y)
    np.savez(tmp_path / "bytes.npz", x=(x * 255).round().byte().numpy(), y=y.astype(np.uint8))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "nets_of_cli_tests", raising=False)
    yield tmp_path
    sys.modules.pop("nets_of_cli_tests", None)


def arrays(path: str) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, which is closed again."""
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def command(*more: str, data: str = "digits.npz", model: str = "digits", eps="1/10") -> list[str]:
    return [
        "attack",
        "--model",
        f"nets_of_cli_tests:{model}",
        "--data",
        data,
        "--eps",
        eps,
        "--out",
        "adv.npz",
        *more,
    ]


def run(capsys, arguments) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    captured = capsys.readouterr()
    return end.value.code, captured.out, captured.err  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("text", "value"),
    [("8/255", 8 / 255), ("0.03", 0.03), ("1e-3", 1e-3), (" 3 / 16 ", 0.1875), ("2", 2.0)],
)
def test_numbers_may_be_fractions(text, value):
    assert commands.parse_number(text) == value


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
    threat = choices.make_threat(norm, commands.parse_number(eps))
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
    code, out, _ = run(capsys, command("--target", "2", "--attack", "bim", eps="0.9"))
    saved = arrays("adv.npz")
    assert code == 0
    assert np.array_equal(saved["success"], saved["prediction"] == 2) and saved["success"].any()
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (command(eps="8"), "eps=8 is larger than the box"),
        (command(eps="eight"), "expected a number such as 0.03 or 8/255; got 'eight'"),
        (command(eps="1/0"), "expected a number such as"),
        (command("--norm", "l3"), "--norm must be one of linf, l2, l1; got 'l3'"),
        (command("--attack", "cw"), "--attack must be one of apgd_ce, apgd_dlr"),
        (command("--attack", "fgsm", "--restarts", "2"), "--restarts does not apply to fgsm"),
        (command("--steps", "0"), "steps must be an integer of at least 1; got 0"),
        (command("--loss", "hinge"), "loss must be one of"),
        (command("--target", "first"), "target must be a (B,) tensor or one of"),
        (command("--target", "12"), "target must lie in [0, 10)"),
        (command("--n", "41"), "--n must be 1 to 40"),
        (command("--format", "png"), "--format must be one of auto, npz, mnist, cifar10"),
        (command("--format", "mnist", data="."), "root must hold t10k-images-idx3-ubyte"),
        (command(data="."), "nothing in the folder . is recognised: looked for MNIST files"),
        (command(data="."), "and CIFAR-10 files (test_batch, test_batch.bin); an npz file is"),
        (
            command("--batch-size", "16", model="for_small_batches"),
            "attacking 16 samples at once fails: RuntimeError: too many",
        ),
        (command(data="nowhere.npz"), "--data: there is no nowhere.npz"),
        (command(data="nets_of_cli_tests.py"), "nets_of_cli_tests.py is not a readable npz file"),
        (command(model="missing"), "'nets_of_cli_tests' has no function 'missing'"),
        (command(model="SIZE"), "'nets_of_cli_tests' has no function 'SIZE'"),
        (
            command(model="broken"),
            "nets_of_cli_tests:broken() fails: RuntimeError: no weights here",
        ),
        (command(model="number"), "must return a model; got int"),
        (command("--report", "r.txt"), "--report must end in .json or .md; got r.txt"),
        (command("--report", "no/r.md"), "--report: there is no folder no"),
        (command("--report", "r.md", "--target", "1"), "leave out --target"),
        (["attack", "--model", "nowhere", *command()[3:]], "--model must be module:function"),
        (["attack", "--model", "nowhere:f", *command()[3:]], "importing 'nowhere' fails"),
        ([*command()[:-1], "adv.npy"], "--out must end in .npz; got adv.npy"),
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


def test_the_version(capsys):
    assert run(capsys, ["--version"]) == (0, f"fastadv {fastadv.__version__}\n", "")


def test_an_unknown_option_and_no_command_exit_with_two(folder, capsys):
    for arguments in (command("--epsilon", "1"), ["attacks"], ["attack"]):
        code, _, err = run(capsys, arguments)
        assert code == 2 and "Error: " in err and "Traceback" not in err


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
        assert (
            lines["backend on cpu"] == f"numpy paths, and eager references of the other ops: {why}"
        )


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
