"""The comparison of fast searches: who has a row, what it says, and what has none."""

import math
import re
from pathlib import Path

import pytest
import torch
from halves import EPS, LEVELS, Halves, problem_of
from torch import nn

import fastadv
from benchmarks.execution import __main__ as execution
from benchmarks.execution import cases as execution_cases
from benchmarks.execution import tables as execution_tables
from benchmarks.execution.cases import EXACT, EXECUTIONS, FOLDABLE, MODELS
from benchmarks.execution.network import small_preact_resnet
from benchmarks.execution.runs import Searcher
from benchmarks.harness import report, schema
from benchmarks.harness.networks import Problem

pytestmark = pytest.mark.filterwarnings("ignore::fastadv.AttackWarning")
PAGE = Path(__file__).parents[3] / "docs" / "execution.md"


# four classes by the first pixel, the nearest of 0, 1/3, 2/3, 1: who falls follows from eps; of
# mnist_wong_0.3 the gradient is zero in half precision
_LOADER = """
import torch
class Nearest(torch.nn.Module):
    def __init__(self, blind):
        super().__init__()
        self.scale, self.blind = torch.nn.Parameter(torch.ones(1)), blind
    def forward(self, x):
        levels = torch.arange(4) / 3
        logits = -self.scale * (x[:, 0, 0, :1] - levels).square()
        if self.blind and torch.is_autocast_enabled("cpu"):
            return logits.detach() + 0 * logits
        return logits
def load(name, n):
    x = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    blind = name == "mnist_wong_0.3"
    x[:4, 0, 0, 0] = torch.tensor([0.0, 0.0, 1.0, 1.0] if blind else [0.0, 0.16, 1.0, 0.45])[:n]
    model = Nearest(blind).requires_grad_(False)
    return model, x, model(x).argmax(1)
def info(name):
    return {"dataset": "noise"}
"""


@pytest.fixture
def models(tmp_path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "load_models.py").write_text(_LOADER)
    return folder


def _run(problem: Problem, environment, *names: str) -> tuple[list[schema.Row], list[str]]:
    searchers = {name: Searcher(problem, FOLDABLE[name]) for name in (EXACT, *names)}
    refusals: list[str] = []
    rows = execution.run_case(
        "PGD-20", problem, EPS, searchers, environment, rounds=2, refusals=refusals
    )
    return rows, refusals


def test_a_run_from_the_command_line_ends_in_rows_and_a_table(tmp_path, models, capsys):
    results = tmp_path / "results"
    execution.main(
        [
            "--models",
            str(models),
            "--only",
            "mnist_kw_0.1",
            "--samples",
            "4",
            "--rounds",
            "2",
            f"--results={results}",
        ]
    )
    rows = schema.read_rows("execution", results)
    assert [(row.case, row.provider) for row in rows] == [
        (f"{attack} mnist_kw_0.1", name)
        for attack in ("PGD-20", "APGD-CE-50")
        for name in EXECUTIONS
    ]
    for row in rows:
        assert (row.baseline, row.n, row.rounds, row.dtype) == (EXACT, 4, 2, "float32")
        assert (row.equality.error, row.equality.tolerance) == (0, 1)
        # eps 0.1: 0.16 and 0.45 fall, 0 and 1 do not
        assert (row.robustness.clean_accuracy, row.robustness.robust_accuracy) == (1.0, 0.5)
        assert (row.extra["missed"], row.extra["beyond"], row.extra["denied"]) == (0, 0, 0)
        # two survivors make every step
        assert row.extra["backwards"] >= 2 * row.robustness.steps
        assert row.extra["forwards"] >= row.extra["backwards"]
        assert row.extra["share_of_limit"] > 0 and 0 < row.extra["model_share"] < 1
        assert row.extra["preparation"] >= 0
        assert schema.Row.from_json(row.to_json()) == row
    assert [row.robustness.steps for row in rows[::4]] == [20, 50]
    assert rows[-1].robustness.step_size == pytest.approx(2 * EPS)
    assert all(row.ratio == 1 for row in rows[::4])
    assert str(tmp_path) not in rows[0].environment.command
    page = tmp_path / "page.md"
    page.write_text("<!-- benchmark:execution -->\n<!-- /benchmark -->\n")
    report.main(["--readme", str(page), "--results", str(results)])
    report.main(["--readme", str(page), "--results", str(results), "--check"])
    text = page.read_text()
    row = rows[5]
    q20, q50, q80 = (f"{value / 1e3:.3g}" for value in (row.q20, row.q50, row.q80))
    time = f"{q50} s ({q20} to {q80}), {row.ratio:.2f}x"
    line = f"| mnist_kw_0.1 | APGD-CE-50 | 0.1 | 4 | bf16 | {time} |"
    assert f"{line} 100.0 % | 50.0 % | 0 / 0 | 0 |" in text
    mean = math.sqrt(rows[1].ratio * rows[5].ratio)
    assert f"| bf16 | 2 | {mean:.2f}x (" in text
    tables = text.split(" -->\n")[1].rpartition("\n\n")[0]
    assert len(tables) > 1000 and tables in capsys.readouterr().out


def test_a_search_that_differs_too_much_fails_the_run_and_the_others_keep_their_rows(
    tmp_path, models, capsys
):
    results = tmp_path / "results"
    with pytest.raises(SystemExit, match="2 searches have no row"):
        execution.main(
            [
                "--models",
                str(models),
                "--only",
                "PGD-20 mnist_wong",
                "--samples",
                "4",
                "--rounds",
                "1",
                f"--results={results}",
            ]
        )
    rows = schema.read_rows("execution", results)
    assert [row.provider for row in rows] == [EXACT, "channels_last"]
    # eps 0.3 reaches the next class from both ends; the blind search has its random start alone
    assert rows[0].robustness.robust_accuracy == 0
    missed = rows[0].extra["bf16: missed"]
    assert missed >= 2
    told = capsys.readouterr()
    assert f"no row for bf16: {missed} missed and 0 beyond fp32" in told.err
    assert f"| bf16 | no row | – | – | {missed} / 0 |" in told.out
    assert f"| bf16 | 0 | – | {missed} / 0 | 4 | 0 | – | – | 1 |" in told.out


def test_a_command_that_matches_nothing_says_so(tmp_path, models):
    with pytest.raises(SystemExit, match="no case matches"):
        execution.main(["--models", str(models), "--only", "nothing", f"--results={tmp_path}"])
    assert list(tmp_path.glob("*/*.jsonl")) == []


def test_successes_that_the_fp32_model_denies_are_counted(environment):
    """In half precision the class changes 0.05 early: the search claims, fp32 denies."""
    model = Halves(lambda logits: logits - torch.tensor([0.5, -0.5]))
    rows, refusals = _run(problem_of(model, LEVELS), environment, "bf16")
    assert refusals == [] and [row.provider for row in rows] == [EXACT, "bf16"]
    assert rows[0].extra["denied"] == 0 and rows[1].extra["denied"] > 0
    assert rows[1].robustness.robust_accuracy == pytest.approx(2 / 6)
    assert f"| {rows[1].extra['denied']} |" in execution_tables.execution(rows)


def test_a_search_that_finds_nothing_has_no_row(environment):
    model = Halves(lambda logits: logits.detach() + 0 * logits)
    rows, refusals = _run(problem_of(model, [0.401, 0.402, 0.598, 0.599]), environment, "bf16")
    assert [row.provider for row in rows] == [EXACT]
    missed = rows[0].extra["bf16: missed"]
    assert missed >= 2 and rows[0].extra["bf16: no row"] == 1
    assert refusals == [f"bf16: {missed} missed and 0 beyond fp32, more than one sample"]


@pytest.mark.parametrize(
    ("name", "half"),
    [("folded", lambda logits: logits), ("bf16", lambda logits: logits * math.nan)],
    ids=["nothing to fold", "unfit for bf16"],
)
def test_what_the_library_left_out_is_not_timed_under_its_name(environment, name, half):
    rows, refusals = _run(problem_of(Halves(half), LEVELS), environment, name, "channels_last")
    assert [row.provider for row in rows] == [EXACT, "channels_last"]
    assert len(refusals) == 1 and re.match(f"{name}: .* was left out", refusals[0])
    assert rows[0].extra[f"{name}: no row"] == 1 and f"{name}: missed" not in rows[0].extra


def test_a_failing_fp32_fails_the_run(environment):
    class Broken(nn.Module):
        def forward(self, x):
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        _run(problem_of(Broken(), LEVELS), environment, "bf16")


def test_the_small_network_is_the_same_each_time_and_folds(models):
    first, second = (small_preact_resnet(models, 4, trained_on=8) for _ in range(2))
    assert len(first.x) == len(first.y) == 4 and not first.model.training
    with torch.no_grad():
        assert torch.equal(first.model(first.x), second.model(second.x))
    searcher = Searcher(first, FOLDABLE["folded"])
    searcher.prepare(fastadv.Linf(EPS))  # raises if nothing was folded
    assert searcher.preparation is not None
    assert all(p.grad is None for p in first.model.parameters())


def test_each_case_stands_once_and_fp32_comes_first():
    cases = [case for model in MODELS for case in model.cases]
    assert len(set(cases)) == len(cases)
    for model in MODELS:
        assert model.executions[0] == EXACT and 150 <= model.source.samples <= 250
    assert {model.source.model: model.source.eps for model in MODELS}["cifar_wide_kw"] == 2 / 255
    assert FOLDABLE[EXACT].is_exact and not any(
        how.is_exact for name, how in FOLDABLE.items() if name != EXACT
    )
    assert {"APGD-T", "AutoAttack"} <= execution_cases.ATTACKS.keys()
    assert execution_cases.most_rounds("PGD-20", 7) == 7


def test_the_page_names_only_tables_that_there_are():
    blocks = re.findall(r"<!-- benchmark:([\w-]+) -->", PAGE.read_text())
    assert blocks == ["tuning", "tuning-attacks", "tuning-autoattack", "execution"]
    assert set(blocks) <= report.TABLES.keys()
