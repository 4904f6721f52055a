"""The report: its interval, its files, and what it says of how it came about."""

import json

import pytest
import torch
from torch import nn

import fastadv
from fastadv.evaluation import evaluate
from fastadv.evaluation.report import wilson_interval


@pytest.fixture
def report():
    model = nn.Linear(1, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[-1.0], [1.0]]))
        model.bias.copy_(torch.tensor([0.5, -0.5]))
    x = torch.tensor([[0.1], [0.45], [0.6], [0.95]])
    attack = fastadv.pgd(fastadv.Linf(0.25), steps=3, restarts=2, seed=7)
    return evaluate(model, (x, torch.tensor([0, 0, 1, 0])), attack)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (0, 10, 0.0, 0.27753279),  # z^2 / (n + z^2)
        (10, 10, 1 - 0.27753279, 1.0),
        (5, 10, 0.23659309, 0.76340691),
        (240, 360, 0.61643709, 0.71337689),
    ],
)
def test_the_interval_is_wilsons(successes, n, low, high):
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=1e-8)


def test_the_interval_solves_wilsons_equation():
    for successes, n in ((3, 17), (80, 81), (1, 1000)):
        for bound in wilson_interval(successes, n):
            z = (successes / n - bound) / (bound * (1 - bound) / n) ** 0.5
            assert abs(z) == pytest.approx(1.959963984540054, rel=1e-9)


def test_json_holds_the_summary_and_every_sample(report):
    read = json.loads(report.to_json())
    assert read["n"] == 4 and read["robust_accuracy"] == 0.25 and read["clean_accuracy"] == 0.75
    assert (read["eps"], read["steps"], read["restarts"], read["seed"]) == (0.25, 3, 2, 7)
    assert read["norm"] == "linf" and read["threat"] == repr(fastadv.Linf(0.25))
    assert read["samples"]["robust"] == [True, False, False, False]
    assert read["samples"]["distance"] == report.distance.tolist()
    assert read["robust_accuracy_95"] == list(wilson_interval(1, 4))
    assert read["environment"]["torch"] == torch.__version__


def test_the_repr_of_the_attack_can_be_pasted_back(report):
    assert repr(eval(report.attack, {"fastadv": fastadv, "Linf": fastadv.Linf})) == report.attack


def test_markdown_states_all_that_defines_the_number(report):
    text = report.to_markdown()
    assert text.startswith("**25.00 % robust accuracy**")
    for part in (
        "| samples | 4 |",
        "| steps, restarts, seed | 3, 2, 7 |",
        "| torch | ",
        "Linear (4 parameters, sha256 ",
        report.attack,
        "25.00 % (95 % interval 4.6 to 69.9)",
    ):
        assert part in text


def test_a_bar_in_a_repr_does_not_break_the_table():
    from dataclasses import replace

    broken = _minimal()
    lines = replace(broken, attack="a | b\nc").to_markdown().splitlines()
    assert "| attack | `a \\| b c` |" in lines


def _minimal():
    one = torch.ones(1, dtype=torch.bool)
    return fastadv.evaluation.Report(
        model="m", attack="a", threat="t", norm="", eps=None, steps=None, restarts=None, seed=None,
        clean_correct=one, robust=one, success=~one, step=torch.tensor([-1]),
        distance=torch.zeros(1).double(), forwards=1, backwards=0, seconds=0.5, warnings={},
        environment={},
    )  # fmt: skip


@pytest.mark.parametrize("suffix", [".json", ".md"])
def test_save_writes_by_suffix(report, tmp_path, suffix):
    report.save(tmp_path / f"report{suffix}")
    expected = report.to_json() if suffix == ".json" else report.to_markdown()
    assert (tmp_path / f"report{suffix}").read_text() == expected


def test_another_suffix_is_refused(report, tmp_path):
    with pytest.raises(ValueError, match="path must end in .json or .md; got"):
        report.save(tmp_path / "report.txt")


def test_str_is_the_headline(report):
    assert "robust accuracy 25.00 % (95 % interval 4.6 to 69.9)" in str(report)
    assert "clean accuracy  75.00 %" in str(report)
    assert "warnings: none" in str(report)
