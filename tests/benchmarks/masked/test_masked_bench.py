"""The suite of masked networks at its smallest: rows that confirm themselves, and their table."""

import pytest

from benchmarks.harness import report, schema
from benchmarks.masked import __main__ as suite
from fastadv.data import load_digits
from fastadv.models import digits_net

CASE = "digits_fast-at: unmasked"


@pytest.fixture
def rows(tmp_path):
    suite.main(["--only", CASE, "--samples", "4", "--seeds", "0", "1", f"--results={tmp_path}"])
    return schema.read_rows("masked", tmp_path)


def test_fast_is_held_to_standard_and_the_table_says_what_it_missed(rows, tmp_path):
    assert [(row.provider, row.extra["seed"]) for row in rows] == [
        ("standard", 0),
        ("fast", 0),
        ("standard", 1),
        ("fast", 1),
    ]
    assert all(row.equality.error == 0 for row in rows)
    standard, fast = rows[:2]
    assert fast.extra["share of passes"] == round(
        fast.extra["passes"] / standard.extra["passes"], 3
    )
    x, y = load_digits("test")
    right = (digits_net(weights="fast-at")(x[:4]).argmax(1) == y[:4]).double().mean()
    assert standard.robustness is not None and standard.robustness.clean_accuracy == right
    page = tmp_path / "page.md"
    page.write_text("<!-- benchmark:masked -->\n<!-- /benchmark -->\n")
    report.main(["--readme", str(page), "--results", str(tmp_path)])
    line = next(line for line in page.read_text().splitlines() if line.startswith(f"| {CASE}"))
    missed = [f"{row.extra['missed']:g}" for row in rows[1::2]]
    assert f"| {', '.join(missed)} |" in line
