"""`fastadv evaluate`: reports and curves as the library makes them, mistakes in one line."""

import json
import sys

import numpy as np
import pytest
import torch

import fastadv
from fastadv.data import load_digits
from fastadv.models import digits_net

pytest.importorskip("typer", reason="needs typer")
pytest.importorskip("rich", reason="needs rich")

from command_line import arrays, run
from command_line import evaluate_command as command

from fastadv.cli import evaluation as evaluate_command
from fastadv.ensemble.constructor import AutoAttack

NETS = """
import torch
from fastadv.models import digits_net

def digits():
    torch.set_num_threads(1)
    return digits_net(3)

def digits_in_a_dict():
    return lambda x: {"logits": digits()(x)}

def digits_in_a_tuple():
    return lambda x: (digits()(x), None)

def fails_on_batches():
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


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A current directory with nets_of_evaluate_tests.py and digits.npz."""
    (tmp_path / "nets_of_evaluate_tests.py").write_text(NETS)
    x, _ = load_digits("test")
    y = digits_net(3)(x[:24]).argmax(1).numpy()
    y[::5] = (y[::5] + 1) % 10  # some are wrong to begin with
    np.savez(tmp_path / "digits.npz", x=x[:24].numpy(), y=y)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "nets_of_evaluate_tests", raising=False)
    yield tmp_path
    sys.modules.pop("nets_of_evaluate_tests", None)


def samples() -> tuple[torch.Tensor, torch.Tensor]:
    file = arrays("digits.npz")
    return torch.from_numpy(file["x"]), torch.from_numpy(file["y"])


@pytest.fixture
def small(monkeypatch):
    """AutoAttack of few steps, whatever version is asked for; the calls that asked for it."""
    asked = []

    def make(threat, version, *, seed):
        asked.append((threat, version, seed))
        attacks = [
            fastadv.apgd_ce(threat, steps=2, seed=seed),
            fastadv.square(threat, queries=5, seed=seed),
        ]
        return fastadv.autoattack(threat, "custom", attacks=attacks, seed=seed)

    monkeypatch.setattr(evaluate_command, "autoattack", make)
    return asked


def test_it_reports_what_the_library_finds_in_every_format(small, folder, capsys):
    outs = ["--out", "r.json", "--out", "r.md", "--out", "r.html"]
    code, out, err = run(capsys, command("--seed", "3", "--batch-size", "2", *outs))
    assert code == 0
    assert small == [(fastadv.Linf(0.1), "standard", 3)]
    attack = evaluate_command.autoattack(fastadv.Linf(0.1), "standard", seed=3)  # type: ignore[attr-defined]
    expected = fastadv.evaluate(digits_net(3), samples(), attack, batch_size=2)
    read = json.loads((folder / "r.json").read_text())
    assert read["samples"]["robust"] == expected.robust.tolist()
    assert read["samples"]["broken_by"] == expected.broken_by.tolist()
    assert read["attack"] == repr(attack)
    text = f"{100 * expected.robust_accuracy:.2f} %"
    assert text in (folder / "r.md").read_text() and text in (folder / "r.html").read_text()
    assert f"robust accuracy {text}" in out and "saved r.json, r.md, r.html" in out
    left = expected.stages[1].attacked
    assert (
        "0 of 24 samples done (0 % of the work), 0 robust; APGD-CE attacks 16" in err.splitlines()
    )
    assert any("SQUARE attacks" in line for line in err.splitlines()) and left > 0
    robust = int(expected.robust.sum())
    assert err.splitlines()[-1] == f"24 of 24 samples done (100 % of the work), {robust} robust"


def test_one_attack_takes_the_options_of_the_attack_command(folder, capsys):
    options = ["--steps", "3", "--restarts", "2", "--step-size", "1/40", "--loss", "margin"]
    code, _, _ = run(
        capsys,
        command("--attack", "pgd", *options, "--norm", "l2", "--n", "10", "--out", "r.json"),
    )
    assert code == 0
    attack = fastadv.pgd(fastadv.L2(0.1), steps=3, restarts=2, step_size=1 / 40, loss="margin")
    read = json.loads((folder / "r.json").read_text())
    assert read["attack"] == repr(attack) and read["n"] == 10


def test_an_output_is_taken_or_refused_as_everywhere(folder, capsys):
    how = ("--attack", "pgd", "--steps", "2")
    code, bare, _ = run(capsys, command(*how))
    assert code == 0
    code, held, _ = run(capsys, command(*how, model="digits_in_a_dict"))
    robust = [line for line in bare.splitlines() if line.startswith("robust accuracy")]
    assert code == 0 and robust and robust[0] in held
    code, _, err = run(capsys, command(*how, model="digits_in_a_tuple"))
    assert code == 2 and "alone: lambda x: model(x)[0]" in err


def test_several_radii_are_a_curve(folder, capsys):
    eps = ("0.2", "1/20", "0.1")
    outs = ["--out", "c.json", "--out", "c.md", "--report", "c.html"]
    code, out, err = run(capsys, command("--attack", "bim", *outs, eps=eps))
    assert code == 0
    expected = fastadv.robustness_curve(
        digits_net(3), samples(), fastadv.bim(fastadv.Linf(0.2)), eps=[0.05, 0.1, 0.2]
    )
    read = json.loads((folder / "c.json").read_text())
    assert read["eps"] == [0.05, 0.1, 0.2]
    assert read["robust_accuracy"] == list(expected.robust_accuracy)
    for accuracy in expected.robust_accuracy:
        text = f"{100 * accuracy:.2f} %"
        assert text in out and text in (folder / "c.html").read_text()
    assert "eps 0.2 attacks 24" in err


@pytest.mark.parametrize("version", evaluate_command._VERSIONS)
def test_every_version_of_autoattack_can_be_asked_for(version):
    threat = fastadv.Linf(0.1)
    chosen = evaluate_command.chosen_attack(threat, version, None, {}, 5)
    assert chosen == fastadv.autoattack(threat, version, seed=5)
    assert isinstance(chosen, AutoAttack)


def test_an_interrupted_evaluation_goes_on(small, folder, capsys, monkeypatch):
    from fastadv.evaluation.state import State

    original = State.save

    def stop(self, path):
        original(self, path)
        raise KeyboardInterrupt

    arguments = command("--batch-size", "2", "--checkpoint", "c.pt", "--out", "r.json")
    with monkeypatch.context() as patched:
        patched.setattr(State, "save", stop)
        code, _, err = run(capsys, arguments)
    assert code == 130 and (folder / "c.pt").exists() and not (folder / "r.json").exists()
    *_, said, goes_on = err.splitlines()
    assert goes_on == f"  fastadv {' '.join(arguments)}"
    assert said == (
        "fastadv: evaluation interrupted: all finished blocks, and all finished attacks of an "
        "ensemble, are in the checkpoint c.pt: the same call goes on from there, with any number "
        "of processes"
    )
    code, _, err = run(capsys, arguments)
    assert code == 0 and "SQUARE attacks" in err.splitlines()[0]  # APGD-CE is done
    attack = evaluate_command.autoattack(fastadv.Linf(0.1), "standard", seed=0)  # type: ignore[attr-defined]
    expected = fastadv.evaluate(digits_net(3), samples(), attack, batch_size=2)
    read = json.loads((folder / "r.json").read_text())
    assert read["samples"]["distance"] == expected.distance.tolist()


def test_warnings_are_said_in_words_and_not_by_python(capsys):
    np.savez("zeros.npz", x=samples()[0].numpy(), y=np.zeros(24, np.int64))
    code, out, err = run(capsys, command("--attack", "bim", model="saturated", data="zeros.npz"))
    assert code == 0 and "warning: zero_gradient: " in out
    assert "the model saturates or masks its gradients" in out and "Warning" not in err


def test_a_terminal_gets_a_bar_that_names_the_attack(small, capsys, monkeypatch):
    class Terminal:
        encoding = "utf-8"
        text = ""

        def isatty(self):
            return True

        def write(self, text):
            self.text += text
            return len(text)

        def flush(self):
            pass

    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "stderr", terminal)
    assert run(capsys, command("--batch-size", "2"))[0] == 0
    assert "robust" in terminal.text and "attacking" in terminal.text
    assert "samples done" not in terminal.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (command(eps=("8",)), "--eps 8 is larger than the box"),
        (command(eps=("eight",)), "--eps must be a number such as 0.03 or 8/255; got 'eight'"),
        (command(eps=("0.1", "1/0")), "--eps must be a number such as"),
        (command("--attack", "bim", eps=("0.1", "1/10")), "--eps must be different radii >= 0"),
        (command("--norm", "l3"), "--norm must be one of linf, l2, l1, l0; got 'l3'"),
        (command("--version", "best"), "--version must be one of standard, plus, rand"),
        (command("--version", "custom"), "--version must be one of standard, plus, rand"),
        (command("--version", "plus", "--attack", "pgd"), "--version is of AutoAttack"),
        (command("--steps", "3"), "--steps needs --attack: AutoAttack has its own"),
        (command("--step-size", "1/9"), "--step-size needs --attack"),
        (command("--attack", "PGD", "--loss", "x"), "--loss must be one of"),  # pgd is known
        (command("--attack", "nosuch"), "--attack must be one of alma, apgd"),
        (command("--attack", "fgsm", "--restarts", "2"), "--restarts does not apply to fgsm"),
        (command("--out", "r.txt"), "--out must end in .json or .md or .html; got r.txt"),
        (command("--out", "no/r.md"), "--out: there is no folder no"),
        (command("--out=no/r.md"), "--out: there is no folder no"),
        (command("--report", "no/r.md"), "--report: there is no folder no"),
        (command("--checkpoint", "no/c.pt"), "--checkpoint no/c.pt: there is no folder no"),
        (command("--uint8"), "--uint8 is of what is saved: it needs --save-adversarial"),
        (command(eps=("0.1,0.2",)), "--eps takes one radius; evaluate draws a curve of several"),
        (command(eps=("-0.1",)), "--eps must not be negative; got -0.1"),
        (command("--checkpoint", "c.pt", eps=("0.1", "0.2")), "--checkpoint takes one --eps"),
        (command("--checkpoint", "digits.npz"), "is not a checkpoint"),
        (command("--n", "25"), "--n must be 1 to 24"),
        (command(model="missing"), "has no function 'missing'"),
        (command("--attack", "bim", "--batch-size", "16", model="fails_on_batches"), "too many"),
    ],
    ids=lambda value: " ".join(value[5:]) if isinstance(value, list) else "",
)
def test_mistakes_are_one_line_and_exit_code_two(capsys, arguments, message):
    code, out, err = run(capsys, arguments)
    assert code == 2 and out == ""
    last = err.splitlines()[-1]
    assert last.startswith("fastadv: ") and message in last and "Traceback" not in err


@pytest.mark.parametrize("eps", [("0.1",), ("0.1", "0.2")], ids=["report", "curve"])
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), {}),
        (("--precision", "bf16"), {"precision": "bf16"}),
        (("--precision", "fp16", "--channels-last"), {"precision": "fp16", "channels_last": True}),
        (("--fold-batchnorm", "--compile"), {"fold_batchnorm": True, "compile": True}),
        (("--cuda-graph", "on"), {"cuda_graph": True}),
        (("--cuda-graph", "off"), {"cuda_graph": False}),
        (("--cuda-graph", "auto"), {"cuda_graph": "auto"}),
        (("--batching", "plain", "--timed"), {"batching": "plain", "timed": True}),
        (("--precision", "bf16", "--final-pass"), {"precision": "bf16", "final_pass": True}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_how_to_run_the_search_reaches_the_library(capsys, monkeypatch, eps, options, expected):
    asked = []

    class Stop(ValueError):
        pass

    def evaluate(*arguments, execution, **more):
        asked.append(execution)
        raise Stop("asked")

    monkeypatch.setattr(evaluate_command, "Execution", lambda **options: options)
    monkeypatch.setattr(evaluate_command, "evaluate_model", evaluate)
    monkeypatch.setattr(evaluate_command, "robustness_curve", evaluate)
    code, _, err = run(capsys, command("--attack", "bim", *options, eps=eps))
    assert code == 2 and err.endswith("fastadv: asked\n")
    defaults = dict(
        precision="fp32",
        channels_last=False,
        fold_batchnorm=False,
        compile=False,
        cuda_graph="auto",
        batching="continuous",
        final_pass=False,
        timed=False,
    )
    assert asked == [{**defaults, **expected}]


def test_what_execution_refuses_is_said_in_one_line(capsys, monkeypatch):
    def refuse(*, precision, cuda_graph, **options):
        raise ValueError(f"no {precision}, no {cuda_graph}")

    monkeypatch.setattr(evaluate_command, "Execution", refuse)
    code, out, err = run(capsys, command("--precision", "fp8", "--cuda-graph", "maybe"))
    assert (code, out, err) == (2, "", "fastadv: no fp8, no maybe\n")


def test_without_a_limit_it_reports_how_near_the_nearest_are(folder, capsys):
    more = ["--attack", "fab", "--norm", "L2", "--steps", "3", "--out", "d.json", "--out", "d.html"]
    code, out, err = run(capsys, command(*more, eps=("inf",)))
    assert code == 0, err
    attack = fastadv.fab(fastadv.L2(), steps=3)
    expected = fastadv.evaluate(digits_net(3), samples(), attack)
    assert torch.equal(fastadv.DistanceReport.load("d.json").distance, expected.distance)
    assert f"50% broken within {expected.median:.4g}" in " ".join(out.split())
    assert "How far" in (folder / "d.html").read_text()


def test_without_a_limit_an_attack_that_needs_one_says_so(capsys):
    code, _, err = run(capsys, command("--attack", "pgd", eps=("inf",)))
    assert code == 2 and "pgd needs a radius" in err
