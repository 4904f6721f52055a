"""`fastadv tune`, and --execution auto of the other commands."""

import json
import sys

import numpy as np
import pytest

pytest.importorskip("typer", reason="needs typer")
pytest.importorskip("rich", reason="needs rich")

from command_line import command, evaluate_command, run

import fastadv
from fastadv.data import load_digits

NETS = """
import torch
from fastadv.models import digits_net

def digits():
    torch.set_num_threads(1)
    return digits_net(3)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    for name in ("nets_of_cli_tests", "nets_of_evaluate_tests"):
        (tmp_path / f"{name}.py").write_text(NETS)
        monkeypatch.delitem(sys.modules, name, raising=False)
    x, y = load_digits("test")
    np.savez(tmp_path / "digits.npz", x=x[:16].numpy(), y=y[:16].numpy())
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)


def _tune(*more):
    return ["tune", "--model", "nets_of_cli_tests:digits", "--seconds", "0.2", *more]


def test_it_prints_the_table_and_an_execution_to_paste(capsys):
    code, out, err = run(capsys, _tune("--data", "digits.npz"))
    assert code == 0, err
    last = out.splitlines()[-1]
    assert "channels_last" in out and "default" in out and last.startswith("choice: Execution(")
    found = eval(last.removeprefix("choice: "), {"Execution": fastadv.Execution})
    assert isinstance(found, fastadv.Execution)


def test_json_holds_the_same(capsys):
    code, out, err = run(capsys, _tune("--shape", "1,8,8", "--n", "4", "--json"))
    assert code == 0, err
    told = json.loads(out)
    assert fastadv.Execution(**told["choice"]) and told["rows"][0]["speed_up"] > 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ((), "one of them"),
        (("--data", "digits.npz", "--shape", "1,8,8"), "one of them"),
        (("--shape", "1,x"), "--shape must be"),
        (("--shape", "1,8,8", "--precisions", "fp8"), "--precisions must be"),
        (("--shape", "1,8,8", "--seconds", "-1"), "--seconds must be"),
        (("--shape", "3,5"), "the model fails on one sample, (1, 3, 5)"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_two(capsys, more, message):
    code, out, err = run(capsys, _tune(*more))
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1


def test_attacks_and_evaluations_may_find_out_by_themselves(capsys):
    code, _, err = run(capsys, command("--execution", "auto", "--steps", "2"))
    assert code == 0, err
    more = ("--attack", "pgd", "--steps", "2", "--execution", "auto", "--out", "r.json")
    code, _, err = run(capsys, evaluate_command(*more))
    assert code == 0, err
    with open("r.json") as file:
        assert json.load(file)["execution"].startswith("fastadv.Execution(batch_size=")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--execution", "fast"), "--execution must be auto"),
        (("--execution", "auto", "--channels-last"), "leave out what else says it"),
    ],
)
def test_what_contradicts_it_is_said(capsys, more, message):
    code, _, err = run(capsys, evaluate_command(*more))
    assert code == 2 and message in err
