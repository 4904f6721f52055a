"""The report: its interval, its files, and what it says of how it came about."""

import json
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch
from torch import nn
from toy_models import mixed_problem, threat_of

import fastadv
from fastadv.attacks.call.result import Cost, Stage
from fastadv.evaluation import evaluate
from fastadv.evaluation.proportions import wilson_interval


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
        "| steps | 3 |",
        "| restarts | 2 |",
        "| seed | 7 |",
        "| torch | ",
        "Linear (4 parameters, sha256 ",
        report.attack,
        "25.00 % (95 % interval 4.6 to 69.9)",
    ):
        assert part in text


def test_a_bar_in_a_repr_does_not_break_the_table():
    broken = _minimal()
    lines = replace(broken, attack="a | b\nc").to_markdown().splitlines()
    assert "| attack | `a \\| b c` |" in lines


def _minimal():
    one = torch.ones(1, dtype=torch.bool)
    return fastadv.evaluation.Report(
        model="m",
        attack="a",
        threat="t",
        norm="",
        eps=None,
        steps=None,
        restarts=None,
        seed=None,
        clean_correct=one,
        robust=one,
        success=~one,
        step=torch.tensor([-1]),
        distance=torch.zeros(1).double(),
        forwards=1,
        backwards=0,
        seconds=0.5,
        warnings={},
        environment={},
    )


@pytest.mark.parametrize("suffix", [".json", ".md", ".html"])
def test_save_writes_by_suffix(report, tmp_path, suffix):
    report.save(tmp_path / f"report{suffix}")
    writers = {".json": report.to_json, ".md": report.to_markdown, ".html": report.to_html}
    assert (tmp_path / f"report{suffix}").read_text() == writers[suffix]()


def test_another_suffix_is_refused(report, tmp_path):
    with pytest.raises(ValueError, match="path must end in .json, .md or .html; got"):
        report.save(tmp_path / "report.txt")


def test_a_folder_in_its_place_is_named_and_the_file_beside_it_is_not(report, tmp_path):
    path = tmp_path / "report.json"
    path.mkdir()
    with pytest.raises(OSError) as raised:
        report.save(path)
    assert raised.value.filename == str(path) and ".tmp" not in str(raised.value)
    assert [one.name for one in tmp_path.iterdir()] == ["report.json"]


def test_str_is_the_headline(report):
    assert "robust accuracy 25.00 % (95 % interval 4.6 to 69.9)" in str(report)
    assert "clean accuracy  75.00 %" in str(report)
    assert "warnings: none" in str(report)


VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Text, tags and attributes of a page; fails on tags that are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.cells: list[str] = []
        self.notes: list[str] = []
        self.styles = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")
        if ("class", "note") in attrs:
            self.notes.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            self.styles += data
        elif self.open and {"td", "th"} & set(self.open):
            self.cells[-1] += data
        elif self.open and self.open[-1] == "p" and self.notes:
            self.notes[-1] += data.strip()


@pytest.fixture
def staged():
    """100 samples: 90 right, 40 broken by the first attack, 10 by the second, one by the third."""
    clean = torch.arange(100) < 90
    broken_by = torch.full((100,), -2)
    broken_by[:90] = -1
    broken_by[:40], broken_by[40:50], broken_by[50] = 0, 1, 2
    stages = (
        Stage("APGD-CE", "fastadv.apgd_ce(...)", 90, 40, 1.25, 4000, 3900, 0),
        Stage("FAB-T", "fastadv.fab_t(...)", 50, 10, 2.5, 12345, 678, 0),
        Stage("SQUARE", "fastadv.square(...)", 40, 1, 3.0, 7777, 0, 111),
    )
    return replace(
        _minimal(),
        clean_correct=clean,
        robust=broken_by == -1,
        success=broken_by != -1,
        step=torch.zeros(100).long(),
        distance=torch.zeros(100).double(),
        broken_by=broken_by,
        stages=stages,
        warnings={"square_gains": 1, "zero_gradient": 7},
        environment={"torch": "2.x", "device": "cpu <here>"},
        attack="f(a < b) & `c` | d",
    )


def test_stages_are_in_every_format(staged):
    assert staged.accuracies == (0.5, 0.4, 0.39) and staged.robust_accuracy == 0.39
    read = json.loads(staged.to_json())
    assert [stage["robust_accuracy"] for stage in read["stages"]] == [0.5, 0.4, 0.39]
    assert [Stage(**{k: s[k] for k in Stage._fields}) for s in read["stages"]] == [*staged.stages]
    assert read["samples"]["broken_by"] == staged.broken_by.tolist()
    assert read["warnings"] == {"square_gains": 1, "zero_gradient": 7}
    row = ["FAB-T", "50", "10", "40.00 %", "2.50 s", "12,345", "678", "0"]
    assert f"| {' | '.join(row)} |" in staged.to_markdown()
    cells = Page(staged.to_html()).cells
    first = cells.index("FAB-T")
    assert cells[first : first + len(row)] == row
    assert "after FAB-T     40.00 %" in str(staged)


def test_warnings_are_in_words_in_every_format(staged):
    words = "square_gains: 1 of 100 samples: the Square Attack, which uses no gradient"
    assert staged.explanations["square_gains"].startswith(words)
    assert json.loads(staged.to_json())["explanations"] == staged.explanations
    assert f"- {staged.explanations['zero_gradient']}" in staged.to_markdown()
    assert Page(staged.to_html()).notes == list(staged.explanations.values())


def test_json_is_strict_and_gives_every_sample_back(staged):
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    read = json.loads(staged.to_json(), parse_constant=refuse)
    for name, values in read["samples"].items():
        assert torch.equal(
            torch.tensor(values, dtype=getattr(staged, name).dtype), vars(staged)[name]
        )
    for name in ("model", "attack", "threat", "seed", "forwards", "seconds", "environment"):
        assert read[name] == getattr(staged, name)
    with pytest.raises(ValueError, match="Out of range float values"):
        replace(staged, seconds=float("nan")).to_json()


def test_html_has_the_numbers_and_needs_nothing_from_elsewhere(staged, report):
    for one, cells in (
        (staged, ["39.00 % (95 % interval 30.0 to 48.8)", "100", "2.x"]),
        (report, ["25.00 % (95 % interval 4.6 to 69.9)", "4", torch.__version__, report.attack]),
    ):
        page = Page(one.to_html())
        assert set(cells) <= set(page.cells)
        assert not page.seen & {"script", "link", "img", "iframe", "object", "embed"}
        assert not {name for name, _ in page.attributes} & {"src", "href", "onload", "srcset"}
        assert "url(" not in page.styles and "@import" not in page.styles
        assert "color-scheme: light dark" in page.styles
        assert "prefers-color-scheme: dark" in page.styles
    assert "100.00%" not in staged.to_html() and "width: 39.00%" in staged.to_html()


def test_html_escapes_what_models_and_attacks_are_called():
    evil = '<script>alert("1")</script>&amp;'
    stage = Stage(evil, evil, 1, 0, 0.0, 0, 0, 0)
    hostile = replace(
        _minimal(), model=evil, attack=evil, threat=evil, stages=(stage,), environment={evil: evil}
    )
    page = Page(hostile.to_html())
    assert "script" not in page.seen
    assert page.cells.count(evil) >= 5 and "&amp;amp;" in hostile.to_html()


def test_attributes_stay_inside_quotes(staged):
    page = Page(staged.to_html())
    widths = [value for name, value in page.attributes if name == "style"]
    assert widths == [
        *("width: 90.00%", "left: 82.56%; width: 11.91%"),  # as they are, and Wilson's interval
        *("width: 39.00%", "left: 30.02%; width: 18.78%"),
        *("width: 50.00%", "width: 40.00%", "width: 39.00%"),
    ]


def test_what_the_time_went_into_is_told_where_it_was_measured():
    cost = Cost(
        seconds=4.0,
        model_seconds=3.0,
        limit_seconds=2.0,
        denied=1_200,
        final_attacked=50,
        final_broken=2,
        final_passes=9_000,
        final_seconds=0.5,
    )
    told = (
        "3.00 s in the model, 1.00 s in the attack; the model's passes alone would take 50.00 % of "
        "it; 1,200 finds of the faster search not confirmed by the model; a last attack by the "
        "model itself on 50 samples broke 2 with 9,000 passes in 0.50 s"
    )
    full = replace(_minimal(), cost=cost, search="precision='bf16'")
    for text in (str(full), full.to_markdown()):
        assert f"0.50 s ({told})" in text
    assert "| search settings | precision='bf16' |" in full.to_markdown()
    written = json.loads(full.to_json())["cost"]
    assert written == {**cost._asdict(), "share_of_limit": 0.5}
    assert "0.50 s, warnings: none" in str(_minimal())


def test_the_report_has_the_cost_of_all_blocks():
    problem = mixed_problem(40)
    attack = fastadv.pgd(threat_of("linf"), steps=6)
    execution = fastadv.Execution(precision="bf16", final_pass=True, timed=True, batch_size=2)
    report = fastadv.evaluate(
        problem.model, (problem.x, problem.y), attack, execution=execution, progress=False
    )
    assert report.search == "precision='bf16', final_pass=True"
    assert report.cost.final_attacked == int(report.robust.sum())
    assert 0 < report.cost.model_seconds < report.cost.seconds <= report.seconds
    assert report.cost.limit_seconds > 0
