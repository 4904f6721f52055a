import dataclasses
import json

import pytest

from benchmarks.harness import schema


def test_a_row_survives_the_file(row, tmp_path):
    schema.append_rows([row], tmp_path)
    assert schema.read_rows("attacks", tmp_path) == [row]


def test_rows_are_appended_never_rewritten(row, with_changes, tmp_path):
    schema.append_rows([row], tmp_path)
    before = (tmp_path / "test-cpu" / "attacks.jsonl").read_bytes()
    schema.append_rows([with_changes(provider="other")], tmp_path)
    after = (tmp_path / "test-cpu" / "attacks.jsonl").read_bytes()
    assert after.startswith(before) and len(after) > len(before)


def test_a_row_without_its_equality_error_cannot_be_created(with_changes):
    with pytest.raises(ValueError, match="a row needs its equality error"):
        with_changes(equality=None)


@pytest.mark.parametrize("error", [2e-6, float("nan"), float("inf"), -1.0])
def test_an_error_beyond_the_tolerance_has_no_row(error):
    with pytest.raises(ValueError, match="a wrong result has no time"):
        schema.Equality(error, 1e-6, "max difference", "textbook")


def test_an_infinite_tolerance_is_refused():
    with pytest.raises(ValueError, match="a wrong result has no time"):
        schema.Equality(1.0, float("inf"), "max difference", "textbook")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q20": 2.5}, "q20 <= q50"),
        ({"q50": 0.0, "q20": 0.0}, "0 < q20"),
        ({"ratio": 0.0}, "ratio must be positive"),
        ({"rounds": 0}, "at least 1"),
        ({"timed": ""}, "timed must not be empty"),
        ({"environment": None}, "environment must be"),
    ],
)
def test_incomplete_rows_are_refused(with_changes, changes, message):
    with pytest.raises(ValueError, match=message):
        with_changes(**changes)


@pytest.mark.parametrize("changes", [{"steps": 0}, {"model": ""}, {"data": ""}, {"n": 0}])
def test_a_robust_accuracy_needs_its_circumstances(row, changes):
    with pytest.raises(ValueError, match="a robust accuracy needs"):
        dataclasses.replace(row.robustness, **changes)


def test_a_robust_accuracy_above_the_clean_one_is_refused(row):
    with pytest.raises(ValueError, match="robust_accuracy must lie in"):
        dataclasses.replace(row.robustness, clean_accuracy=0.4)


@pytest.mark.parametrize("command", ["python /home/me/x.py", "python -m x --data=/srv/mnist"])
def test_commands_hold_no_absolute_path(environment, command):
    with pytest.raises(ValueError, match="no absolute path"):
        dataclasses.replace(environment, command=command)


def test_a_device_is_a_folder_name(environment):
    with pytest.raises(ValueError, match="'nvidia-h200'"):
        dataclasses.replace(environment, device="NVIDIA H200")


def test_device_names_are_normalised():
    assert schema.normalise_device("Intel(R) Xeon(R) CPU @ 2.20GHz") == "intel-xeon-cpu-2-20ghz"


@pytest.mark.parametrize("part", ["equality", "environment", "shape"])
def test_a_line_that_lacks_a_part_is_named(row, tmp_path, part):
    values = json.loads(row.to_json())
    del values[part]
    path = tmp_path / "test-cpu" / "attacks.jsonl"
    path.parent.mkdir()
    path.write_text(row.to_json() + "\n" + json.dumps(values) + "\n")
    with pytest.raises(ValueError, match=r"test-cpu/attacks.jsonl, line 2"):
        schema.read_rows("attacks", tmp_path)


def test_of_each_case_the_newest_run_on_the_newest_device(row, with_changes, environment):
    def run(day, device=environment.device, **changes):
        date = f"2026-01-{day}T00:00:00+00:00"
        at = dataclasses.replace(environment, date=date, device=device)
        return with_changes(environment=at, **changes)

    newest = [run("05", case="a"), run("06", case="b"), run("06", case="b", provider="other")]
    older = [run("04", case="a"), run("05", case="b"), run("03", device="other-cpu", case="c")]
    assert schema.newest_of_each_case([*older, *newest]) == newest
    assert schema.newest_of_each_case([]) == []


def test_the_newest_run_is_whole_and_alone(row, with_changes, environment):
    later = dataclasses.replace(environment, date="2026-01-02T00:00:00+00:00")
    newer = [with_changes(environment=later), with_changes(environment=later, provider="other")]
    assert schema.newest_run([*newer, row]) == newer
