import dataclasses
import json
from pathlib import Path

import pytest

from benchmarks.harness import report, schema

_README = "# x\n<!-- benchmark:{name} -->\nold\n<!-- /benchmark -->\ntail\n"


@pytest.fixture
def results(row, with_changes, tmp_path):
    folder = tmp_path / "results"
    slower = with_changes(provider="textbook", q20=2.0, q50=3.0, q80=4.0, ratio=1.0)
    schema.append_rows([row, slower], folder)
    return folder


@pytest.fixture
def readme(tmp_path):
    path = tmp_path / "README.md"
    path.write_text(_README.format(name="attacks-by-case"))
    return path


def _run(readme, results, *more: str) -> None:
    report.main(["--readme", str(readme), "--results", str(results), *more])


def test_a_table_holds_what_the_rows_say(readme, results):
    _run(readme, results)
    text = readme.read_text()
    wanted = "| PGD-10 | digits_net | 8 | 0.1 | 2 ms (1.50x) | 3 ms (1.00x) | 1e-09 | 50.0 % |"
    assert wanted in text
    assert "old" not in text and text.startswith("# x\n") and text.endswith("tail\n")


_NOTE = (
    "Samples beyond: further off than the tolerance (1e-06) and left out of the error "
    "(max of all but 1 in 4): rounding decides the sign of gradients near zero there."
)


@pytest.mark.parametrize(
    "name, cell",
    [
        ("attacks-by-case", "| 1e-09 (2 of 8 samples beyond) |"),
        ("attacks", "| 1e-09 (1e-06; 2 of 8 samples beyond) |"),
    ],
)
def test_samples_beyond_the_tolerance_are_shown_and_explained(
    readme, results, with_changes, name, cell
):
    readme.write_text(_README.format(name=name))
    _run(readme, results)
    assert "beyond" not in readme.read_text()
    metric = "max of all but 1 in 4: zeros"
    parted = [
        with_changes(equality=schema.Equality(1e-9, 1e-6, metric, "textbook", outliers))
        for outliers in (1, 2)
    ]
    schema.append_rows([parted[0], dataclasses.replace(parted[1], provider="textbook")], results)
    _run(readme, results)
    assert cell in readme.read_text() and _NOTE in readme.read_text()


@pytest.mark.parametrize(
    "name", ["attacks-by-case", "attacks", "attacks-chart", "attacks@test-cpu"]
)
def test_a_written_report_passes_its_check(readme, results, name):
    readme.write_text(_README.format(name=name))
    _run(readme, results)
    _run(readme, results, "--check")


def test_check_fails_on_a_typed_number_and_writes_nothing(readme, results):
    _run(readme, results)
    changed = readme.read_text().replace("1.50x", "2.50x")
    readme.write_text(changed)
    with pytest.raises(SystemExit, match="1"):
        _run(readme, results, "--check")
    assert readme.read_text() == changed


def test_check_fails_when_newer_rows_have_come(readme, results, with_changes, environment):
    _run(readme, results)
    later = dataclasses.replace(environment, date="2026-01-02T00:00:00+00:00")
    schema.append_rows([with_changes(environment=later, q50=2.5)], results)
    with pytest.raises(SystemExit, match="1"):
        _run(readme, results, "--check")


def test_check_fails_on_a_changed_chart(readme, results):
    readme.write_text(_README.format(name="attacks-chart"))
    _run(readme, results)
    (results / "test-cpu" / "attacks-chart.svg").write_text("<svg/>")
    with pytest.raises(SystemExit, match="1"):
        _run(readme, results, "--check")


def test_rows_without_an_equality_error_are_refused(readme, results, row):
    values = json.loads(row.to_json()) | {"equality": None}
    with (results / "test-cpu" / "attacks.jsonl").open("a") as file:
        file.write(json.dumps(values) + "\n")
    with pytest.raises(SystemExit, match="line 3: .* a row needs its equality error"):
        _run(readme, results)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (_README.format(name="speed"), "benchmark:speed must be one of"),
        (_README.format(name="ops"), "run `python -m benchmarks.ops --results results` first"),
        (_README.format(name="mnist"), "run `python -m benchmarks.training.mnist "),
        ("<!-- benchmark:attacks -->\nnever closed\n", "must stand on a line of its own"),
    ],
)
def test_blocks_that_cannot_be_written_are_errors(readme, results, text, message):
    readme.write_text(text)
    with pytest.raises(SystemExit, match=message):
        _run(readme, results)


def test_a_text_without_blocks_is_left_alone(readme, results):
    readme.write_text("# nothing here\n")
    _run(readme, results, "--check")


def test_all_pages_with_blocks_are_written_and_checked(capsys):
    root = Path(report.__file__).parents[2]
    pages = [*root.glob("*.md"), *(root / "docs").glob("*.md")]
    assert {page for page in pages if "<!-- benchmark:" in page.read_text()} == set(report.PAGES)
    report.main(["--check"])  # exits with 1 if one differs


def test_the_reasons_to_switch_are_one_small_table():
    text, _ = report.render(_README.format(name="why-switch"), schema.RESULTS, schema.RESULTS)
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) <= 10 and all(line.count("|") <= 7 for line in table)
    assert "Where it is not faster: " in text
