"""README and the pages of docs/ run as written, twice in a row, and print what they say."""

import re
from pathlib import Path

import pages
import pytest
from pages import ROOT

README = ROOT / "README.md"
_PERCENT = re.compile(r"\d+\.\d+(?=%)")
_RECIPES = ROOT / "docs" / "recipes.md"  # run recipe by recipe in test_recipes.py
_PAGES = [
    page
    for page in sorted(ROOT.glob("docs/*.md"))
    if pages.blocks(page.read_text()) and page != _RECIPES
]


def _run_twice(page: Path) -> list[str]:
    """What the blocks print, all of them one after another in one session, and again, in the
    folder of the first time."""
    names: dict[str, object] = {}
    return [*pages.run(page.read_text(), names), *pages.run(page.read_text(), names)]


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.name)
def test_the_snippets_run_twice_in_a_row(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _run_twice(page)


def test_the_readme_runs_twice_and_its_first_example_prints_what_stands_beside_it(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    printed, *_ = _run_twice(README)  # once for both claims: most of it is AutoAttack
    shown = pages.shown(README.read_text())[0]
    assert _PERCENT.sub("", printed) == _PERCENT.sub("", shown)
    # two of 360 samples: another CPU may round the logits of one to the other side
    for got, wanted in zip(_PERCENT.findall(printed), _PERCENT.findall(shown), strict=True):
        assert abs(float(got) - float(wanted)) <= 100 * 2 / 360 + 0.05


def test_the_readme_is_short():
    lines = README.read_text().splitlines()
    assert len(lines) <= 150
    assert all(line.count("|") <= 7 for line in lines)  # tables of six columns at most


def test_links_lead_to_files():
    for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "benchmarks" / "README.md"):
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert link.startswith("https://") or (page.parent / link).exists(), (page.name, link)


def test_paths_that_are_named_are_there():
    """But for those of the family that CONTRIBUTING makes up, nudge."""
    named = re.compile(r"`((?:kernels|fastadv|tests|benchmarks|docs|examples)/[\w/.-]*)`")
    for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "benchmarks" / "README.md"):
        missing = [name for name in named.findall(page.read_text()) if not (ROOT / name).exists()]
        assert [name for name in missing if "/nudge/" not in name] == [], page


def test_every_benchmark_command_is_named():
    page = (ROOT / "benchmarks" / "README.md").read_text()
    for path in (ROOT / "benchmarks").rglob("*.py"):
        if 'if __name__ == "__main__":' in path.read_text():
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(
                ".__main__"
            )
            assert f"`python -m {module}" in page, module


def test_the_picture_is_small():
    (picture,) = re.findall(r"!\[.*?\]\((.*?)\)", README.read_text())
    assert (ROOT / picture).stat().st_size < 200_000
