"""The comparison of fast searches: what counts as a success, and how many may differ."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from halves import EPS, LEVELS, Halves, problem_of

import fastadv
from benchmarks.execution import tables as execution_tables
from benchmarks.execution.cases import EXACT, EXECUTIONS
from benchmarks.execution.runs import Search, Searcher, Verdicts
from benchmarks.harness.networks import Problem

pytestmark = pytest.mark.filterwarnings("ignore::fastadv.AttackWarning")


def _planted(problem: Problem, moved: dict[str, list[float]]) -> Verdicts:
    """Verdicts on results that moved the samples by so much."""
    searches = {
        name: SimpleNamespace(
            first=SimpleNamespace(x_adv=problem.x + torch.tensor(by).reshape(-1, 1, 1, 1))
        )
        for name, by in moved.items()
    }
    return Verdicts(problem, EPS, searches)  # type: ignore[arg-type]


UP, DOWN, STAY = 0.099, -0.099, 0.0


@pytest.mark.parametrize(
    ("moved", "error"),
    [
        ([STAY, UP, UP, DOWN, DOWN, STAY], 0),
        ([STAY, STAY, UP, DOWN, DOWN, STAY], 1),
        ([STAY, STAY, UP, DOWN, STAY, STAY], None),
    ],
    ids=["equal", "one missed", "two missed"],
)
def test_one_verdict_may_differ(moved, error):
    problem = problem_of(Halves(), LEVELS)
    verdicts = _planted(problem, {EXACT: [STAY, UP, UP, DOWN, DOWN, STAY], "bf16": moved})
    fallen = torch.tensor([step != STAY for step in moved])
    assert verdicts.check(EXACT, torch.tensor([False, *[True] * 4, False])).error == 0
    if error is None:
        with pytest.raises(ValueError, match="error 2 against fp32 must lie in .0, 1.*no time"):
            verdicts.check("bf16", fallen)
        assert verdicts.differences("bf16") == (2, 0)
    else:
        assert verdicts.check("bf16", fallen).error == error


def test_a_miss_is_not_made_up_for_by_what_is_broken_beyond():
    """Unlike in the AutoAttack comparison, where counts are net."""
    problem = problem_of(Halves(), LEVELS)
    verdicts = _planted(problem, {EXACT: [0, UP, 0, 0, 0, 0], "bf16": [0, 0, UP, 0, 0, 0]})
    verdicts.check(EXACT, torch.tensor([False, True, False, False, False, False]))
    with pytest.raises(ValueError, match="error 2 against fp32"):
        verdicts.check("bf16", torch.tensor([False, False, True, False, False, False]))
    assert verdicts.differences("bf16") == (1, 1)


@pytest.mark.parametrize(
    "moved",
    [[0, 0.05, UP, DOWN, DOWN, 0], [0.45, UP, UP, DOWN, DOWN, 0]],
    ids=["not fooled", "outside eps"],
)
def test_a_success_that_is_none_on_the_fp32_model_is_refused(moved):
    problem = problem_of(Halves(), LEVELS)
    verdicts = _planted(problem, {EXACT: [0, UP, UP, DOWN, DOWN, 0], "bf16": moved})
    verdicts.check(EXACT, torch.tensor([False, True, True, True, True, False]))
    with pytest.raises(ValueError, match="1 successes are not confirmed"):
        verdicts.check("bf16", torch.tensor([step != 0 for step in moved]))
    assert "bf16" not in verdicts.masks


def test_the_summary_counts_what_has_no_row_too(row, with_changes):
    extra = {
        "missed": 0,
        "beyond": 0,
        "denied": 0,
        "forwards": 9,
        "backwards": 8,
        "preparation": 0.1,
        "model_share": 0.5,
        "share_of_limit": 0.4,
    }
    base = dict(suite="execution", baseline=EXACT, ratio=1.0)
    exact = with_changes(provider=EXACT, case="PGD-20 a", extra=extra, **base)
    fast = replace(exact, provider="bf16", ratio=2.0, extra=extra | {"missed": 1, "denied": 3})
    off = extra | {"bf16: no row": 1, "bf16: missed": 2, "bf16: beyond": 5}
    failed = extra | {"bf16: no row": 1}
    rows = [exact, fast, replace(exact, case="PGD-20 b", extra=off)]
    rows.append(replace(exact, case="PGD-20 c", extra=failed))
    text = execution_tables.execution(rows)
    # of 8 samples a case, in the cases with a verdict
    assert "| bf16 | 1 | 2.00x (2.00x to 2.00x) | 3 / 5 | 16 | 3 | 50 % | 40 % | 2 |" in text
    assert "| fp32 | 3 | 1.00x (1.00x to 1.00x) | 0 / 0 | 24 | 0 | 50 % | 40 % | 0 |" in text
    assert text.count("| bf16 | no row | – | – | 2 / 5 | – |") == 1
    assert text.count("| bf16 | no row | – | – | – | – |") == 1


def test_the_first_call_alone_measures_its_limit():
    problem = problem_of(Halves(), LEVELS)
    search = Search(Searcher(problem, EXECUTIONS["bf16"]), fastadv.pgd(fastadv.Linf(EPS), steps=3))
    assert search.searcher.preparation is None
    first = search()
    kept = search.first
    assert kept is not None and kept.cost.share_of_limit is not None
    assert search.searcher.preparation is not None
    assert torch.equal(search(), first) and search.first is kept
