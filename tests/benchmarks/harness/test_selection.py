"""A command whose filter matches no case ends with what there is, before anything is measured."""

import pytest

from benchmarks.attacks import __main__ as attacks
from benchmarks.clamping import __main__ as clamping
from benchmarks.execution import __main__ as execution
from benchmarks.harness import report, selection
from benchmarks.ops import __main__ as ops
from benchmarks.training import mnist

COMMANDS = {
    "attacks": (attacks.main, ["--cases"], "PGD-10 BatchNormNet"),
    "ops": (ops.main, ["--ops"], "linf_step"),
    "clamping": (clamping.main, ["--case"], "digits_net FGSM"),
    "execution": (execution.main, ["--models", "nowhere", "--only"], "PGD-20"),
}


@pytest.mark.parametrize("suite", COMMANDS)
def test_a_filter_that_matches_nothing_names_what_there_is(suite: str, tmp_path):
    main, filtered, case = COMMANDS[suite]
    with pytest.raises(SystemExit, match=rf"no case matches {filtered[-1]} 'NOSUCH'.*{case}"):
        main([*filtered, "NOSUCH", f"--results={tmp_path}"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suite", COMMANDS)
def test_a_filter_that_is_no_expression_is_said_to_be_none(suite: str, tmp_path):
    main, filtered, _ = COMMANDS[suite]
    with pytest.raises(SystemExit, match=rf"{filtered[-1]} 'PGD\(' is no regular expression"):
        main([*filtered, "PGD(", f"--results={tmp_path}"])


def test_a_kind_of_number_that_there_is_not(tmp_path, capsys):
    with pytest.raises(SystemExit):
        ops.main(["--dtypes", "float31", f"--results={tmp_path}"])
    assert "bfloat16" in capsys.readouterr().err


def test_cases_are_matched_anywhere_in_their_name_each_once():
    names = ["PGD-10 a", "PGD-10 b", "PGD-100 a", "PGD-10 a"]
    assert selection.matching("10 a|100", names, option="--cases") == ["PGD-10 a", "PGD-100 a"]
    assert selection.matching("", names, option="--cases") == names[:3]


@pytest.mark.parametrize(
    ("run", "words"), [("nosuch:0", "there are: single-step, "), ("fast:x", "must be integers")]
)
def test_a_run_of_mnist_that_there_is_not(run: str, words: str, tmp_path, capsys):
    with pytest.raises(SystemExit):
        mnist.main(["--run", run, f"--data={tmp_path}", f"--out={tmp_path}"])
    assert words in capsys.readouterr().err


def test_a_page_that_there_is_not(tmp_path):
    with pytest.raises(SystemExit, match=r"benchmarks.harness.report: .*no_page\.md"):
        report.main(["--check", f"--readme={tmp_path / 'no_page.md'}"])
