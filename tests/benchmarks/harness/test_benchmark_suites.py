"""The suites run from end to end, small, and write rows."""

import argparse
import dataclasses
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import reference
from benchmarks.attacks import __main__ as attacks
from benchmarks.attacks import counts
from benchmarks.harness import environment, networks, output, peers, schema
from benchmarks.ops import __main__ as ops

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def problem() -> networks.Problem:
    return networks.batchnorm(8, torch.device("cpu"))


def _case(problem: networks.Problem, **changes) -> attacks.AttackCase:
    settings = peers.Settings("pgd", "linf", 16 / 255, 4 / 255, steps=4)
    return attacks.AttackCase("PGD-4 net", "net", 8, dataclasses.replace(settings, **changes))


def test_the_attack_suite_writes_rows_for_every_library_there_is(tmp_path):
    attacks.main(
        [
            "--cases",
            "PGD-10 BatchNormNet",
            "--samples",
            "4",
            "--rounds",
            "1",
            f"--results={tmp_path}",
        ]
    )
    rows = schema.read_rows("attacks", tmp_path)
    providers = {row.provider for row in rows}
    assert {"fastadv, last iterate", "fastadv, first success", "textbook"} <= providers
    of_attacks = [row for row in rows if row.provider != "bare passes"]
    assert len(of_attacks) < len(rows)
    assert all(row.robustness is not None and row.robustness.n == 4 for row in of_attacks)
    assert str(tmp_path) not in rows[0].environment.command


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "fgsm", "steps": 1, "step_size": 16 / 255},
        {"kind": "mifgsm"},
        {"norm": "l2", "eps": 0.5, "step_size": 0.2},
        {"restarts": 2},
    ],
    ids=lambda changes: "-".join(map(str, changes)),
)
def test_every_library_finds_what_the_textbook_finds(problem, changes):
    case = _case(problem, **changes)
    check = attacks.equality_check(case, problem)
    for name, run in attacks.build_providers(case, problem).items():
        check(name, run())


def test_an_attack_with_another_step_size_is_refused(problem):
    check = attacks.equality_check(_case(problem), problem)
    other = attacks.textbook(_case(problem, step_size=1 / 255).settings, problem)()
    with pytest.raises(ValueError, match="a wrong result has no time"):
        check("other", other)


def test_a_missing_peer_is_skipped_with_its_reason(problem, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    runs = attacks.build_providers(_case(problem), problem)
    assert "torchattacks" not in runs and "textbook" in runs
    assert "without torchattacks: torchattacks is not installed" in capsys.readouterr().out


def test_first_success_keeps_the_first_iterate_that_fools(problem):
    settings = {"eps": 0.2, "step_size": 0.02}
    last = reference.pgd_first_success(problem.model, problem.x, problem.y, steps=8, **settings)
    fooled = networks.accuracy(problem, last)
    steps = [
        reference.pgd(problem.model, problem.x, problem.y, steps=k, random_start=False, **settings)
        for k in range(1, 9)
    ]
    for i in range(len(problem.x)):
        hits = [s[i] for s in steps if problem.model(s[i : i + 1]).argmax() != problem.y[i]]
        assert torch.equal(last[i], hits[0] if hits else steps[-1][i])
    assert fooled < 1  # otherwise nothing was tested


def test_the_op_suite_writes_rows_with_a_share_of_the_copy_bandwidth(tmp_path):
    ops.main(["--batch", "2", "--rounds", "2", "--copied", "100000", f"--results={tmp_path}"])
    rows = schema.read_rows("ops", tmp_path)
    assert len({row.case for row in rows}) == 6
    assert all(row.bandwidth is not None for row in rows)


def test_the_counting_suite_writes_rows(tmp_path, monkeypatch):
    if not counts.backend.interpreting():
        pytest.skip("needs the Triton interpreter, TRITON_INTERPRET=1")
    counts.main(["--samples", "2", f"--results={tmp_path}"])
    rows = schema.read_rows("counts", tmp_path)
    fused = [row for row in rows if "Triton" in row.provider and "Linf" in row.case]
    assert [row.extra["launches"] for row in fused] == [2]


def test_rows_go_where_git_does_not_look_unless_told_otherwise():
    parser = argparse.ArgumentParser()
    output.add_option(parser)
    assert parser.parse_args([]).results == ROOT / "bench-output"
    assert "bench-output/" in (ROOT / ".gitignore").read_text().splitlines()


def test_no_suite_has_an_option_of_its_own_for_that():
    files = (ROOT / "benchmarks").rglob("*.py")
    having = {path.name for path in files if 'add_argument("--results"' in path.read_text()}
    assert having == {"report.py"}  # reads rows, and appends none


def test_what_was_appended_is_said(tmp_path, row, capsys):
    output.record([row], tmp_path / "out")
    assert schema.read_rows("attacks", tmp_path / "out") == [row]
    assert capsys.readouterr().out == "appended to out/test-cpu/attacks.jsonl\n"


def test_the_environment_names_no_host_and_no_folder(tmp_path):
    found = environment.describe(
        ["no-such-package"],
        device=torch.device("cpu"),
        module="benchmarks.x",
        arguments=["--data", "/srv/secret/mnist", f"--results={tmp_path}"],
    )
    assert found.command == f"python -m benchmarks.x --data mnist --results={tmp_path.name}"
    assert found.device == schema.normalise_device(environment.device_model(torch.device("cpu")))
    assert "no-such-package" not in found.versions
