"""The AutoAttack comparison: interleaved runs, verified verdicts, rows, resumption."""

import importlib.util

import pytest
import torch
from torch import nn
from toy_models import mixed_problem

from benchmarks.autoattack import parties as autoattack_parties
from benchmarks.autoattack import rows as autoattack_rows
from benchmarks.autoattack import runs as autoattack_runs
from benchmarks.autoattack import tables as autoattack_tables
from benchmarks.autoattack.entrants import NAMES, OURS, TORCHATTACKS, Budget, Fastadv, torchattacks
from benchmarks.autoattack.runs import Round, Stage
from benchmarks.harness import schema
from benchmarks.harness.networks import Problem

BUDGET = Budget(steps=5, queries=20, targets=2)
EPS = 0.06
LINES = [*NAMES, "checks", "total"]


@pytest.fixture(scope="module")
def problem() -> Problem:
    toy = mixed_problem(12, (3, 8, 8), curvature=2.0)
    return Problem("toy", "noise", toy.model.requires_grad_(True), toy.x, toy.y)


@pytest.fixture(scope="module")
def builds():
    found = {OURS: Fastadv}
    if importlib.util.find_spec("torchattacks") is not None:
        found[TORCHATTACKS] = torchattacks
    return found


@pytest.fixture(scope="module")
def found(problem, builds) -> Round:
    return autoattack_runs.run_round(problem, EPS, builds, BUDGET, turn=0)


def _rows(problem, found, environment, **more) -> list[schema.Row]:
    options = {"reference": None} | more
    return autoattack_rows.rows_of(problem, EPS, [found], environment, BUDGET, **options)


def test_every_library_has_a_row_an_attack_one_for_the_checks_and_one_for_all(
    problem, builds, found, environment
):
    rows = _rows(problem, found, environment)
    assert [row.provider for row in rows] == [name for name in builds for _ in LINES]
    for own in (rows[i : i + len(LINES)] for i in range(0, len(rows), len(LINES))):
        assert [row.case for row in own] == [f"toy {line}" for line in LINES]
        *parts, total = own
        for name in ("forwards", "backwards", "bare", "wall"):
            assert total.extra[name] == pytest.approx(sum(row.extra[name] for row in parts))
        assert total.q50 == pytest.approx(sum(row.q50 for row in parts))
        assert total.extra["beside"] == pytest.approx(total.q50 - total.extra["bare"])
        accuracies = [row.robustness.robust_accuracy for row in own]
        assert accuracies == sorted(accuracies, reverse=True)
        assert accuracies[-1] < total.robustness.clean_accuracy < 1
        assert all(row.n == 12 and row.unit == "s" and row.extra["refused"] == 0 for row in own)
    assert [schema.Row.from_json(row.to_json()) for row in rows] == rows


def test_passes_are_those_that_the_model_saw(problem, found):
    ce, _, _, square, checks = found.stages[OURS]
    steps = BUDGET.steps
    # a sample that stops early, here at most all, saves passes; none makes more than its steps
    assert ce.backwards <= ce.attacked * steps and ce.forwards <= ce.attacked * (steps + 1) + 12
    assert square.backwards == 0 and square.forwards <= square.attacked * (BUDGET.queries + 1) + 12
    assert checks.backwards == 0 and checks.forwards >= len(problem.x)


def test_each_attack_gets_the_survivors_of_the_ones_before_it(found):
    for stages in found.stages.values():
        left = found.clean
        for stage in stages[:-1]:
            assert stage.attacked == left.count("1")
            assert all(old >= new for old, new in zip(left, stage.robust, strict=True))
            left = stage.robust
        assert stages[-1].robust == left


def test_torchattacks_makes_every_step_of_every_survivor(found):
    if TORCHATTACKS not in found.stages:
        pytest.skip("needs torchattacks")
    ce = found.stages[TORCHATTACKS][0]
    # APGD: a first look, a gradient at the start and at each step, and our look at the result
    assert ce.backwards == ce.attacked * (BUDGET.steps + 1)
    assert ce.forwards == ce.attacked * (BUDGET.steps + 3)


def test_attacks_without_survivors_are_not_called(problem, builds, environment):
    found = autoattack_runs.run_round(problem, 0.5, builds, BUDGET, turn=0)
    for stages in found.stages.values():
        assert stages[0].robust == "0" * 12
        assert all((s.attacked, s.forwards) == (0, 0) for s in stages[1:-1])
    assert len(_rows(problem, found, environment)) == len(builds) * len(LINES)


class _Planted:
    """Claims that three samples fell: in truth, outside the radius, and not at all."""

    def __init__(self, problem: Problem) -> None:
        x_adv = problem.x.clone()
        x_adv[0], x_adv[1] = problem.x[0] + EPS / 2, problem.x[1] + 2 * EPS
        self.robust = torch.tensor([False, False, False, True])
        self.x_adv = x_adv


def test_a_claim_is_confirmed_by_the_model_within_eps_or_refused():
    class Threshold(nn.Module):
        def forward(self, x):
            level = x.reshape(len(x), -1).amax(1)
            return torch.stack([0.51 - level, level - 0.51], 1)

    x = torch.full((4, 1, 2, 2), 0.5)
    problem = Problem("t", "flat", Threshold(), x, torch.zeros(4, dtype=torch.int64))
    planted = _Planted(problem)
    mask, refused, distance = autoattack_runs.verdict(problem, EPS, planted.robust, planted.x_adv)
    assert (mask, refused) == ("0111", 2)
    assert distance == pytest.approx(0.5, abs=1e-6)


def test_a_sample_that_is_wrong_as_it_is_is_neither_claimed_nor_refused():
    x = torch.zeros(2, 1, 2, 2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        y = model(x).argmax(1)
    y[1] = 1 - y[1]
    problem = Problem("t", "zeros", model, x, y)
    assert autoattack_runs.verdict(problem, EPS, y == y[0], x)[:2] == ("10", 0)


@pytest.mark.parametrize(
    ("own", "other", "expected"),
    [
        ("1100", "1010", (1, 1)),
        ("11", "0011", (2, 0)),
        ("0000", "1111", (0, 4)),
        ("1", "1", (0, 0)),
    ],
)
def test_misses_and_gains_are_counted_point_by_point(own, other, expected):
    assert autoattack_runs.missed_and_beyond(own, other) == expected


def _stage(robust: str, cpu: float = 2.0, bare: float = 1.0) -> Stage:
    return Stage("x", len(robust), cpu, cpu, 10, 5, bare, robust, 0, 0.5)


def _of(masks: dict[str, str], **times) -> Round:
    stages = {name: [_stage(mask, **times.get(name, {}))] * 5 for name, mask in masks.items()}
    return Round("1" * 12, stages)


def test_ratios_are_of_process_time_and_of_what_is_left_beside_the_model(problem, environment):
    own = _of(
        {"autoattack": "0" * 12, OURS: "0" * 12},
        autoattack=dict(cpu=6.0, bare=2.0),
        fastadv=dict(cpu=3.0, bare=1.0),
    )
    rows = _rows(problem, own, environment)
    assert {row.baseline for row in rows} == {"autoattack"}
    total = rows[-1]
    assert (total.provider, total.q50, total.ratio) == (OURS, 15.0, 2.0)
    assert (total.extra["beside"], total.extra["beside_ratio"]) == (10.0, 2.0)


def test_a_model_that_is_all_there_is_has_no_ratio_beside_it(problem, environment):
    row = _rows(problem, _of({OURS: "0" * 12}, fastadv=dict(cpu=1.0, bare=1.5)), environment)[-1]
    assert "beside_ratio" not in row.extra and row.extra["beside"] == -2.5
    text = autoattack_tables.totals([row])
    assert f"| {row.extra['beside']:.4g} s (–) |" in text


def test_one_miss_in_250_points_is_the_most_and_of_fewer_points_one(problem, environment):
    theirs = "0" * 12
    assert _rows(problem, _of({"autoattack": theirs, OURS: "1" + "0" * 11}), environment)
    weaker = _of({"autoattack": theirs, OURS: "11" + "0" * 10})
    with pytest.raises(ValueError, match=r"fastadv on toy: .*a wrong result has no time"):
        _rows(problem, weaker, environment)
    long = Round("1" * 500, {"autoattack": [_stage("0" * 500)], OURS: [_stage("11" + "0" * 498)]})
    assert autoattack_rows.equality_of(long, OURS, None).tolerance == 2 / 500
    long.stages[OURS] = [_stage("111" + "0" * 497)]
    with pytest.raises(ValueError, match="a wrong result has no time"):
        autoattack_rows.equality_of(long, OURS, None)


def test_what_is_broken_beyond_makes_up_for_a_miss(problem, environment):
    found = _of({"autoattack": "0011" + "1" * 8, OURS: "1100" + "1" * 8})
    row = _rows(problem, found, environment)[-1]
    assert (row.extra["missed"], row.extra["beyond"], row.equality.error) == (2, 2, 0)


def test_another_library_that_misses_more_is_left_out_and_named(problem, environment, capsys):
    found = _of({"autoattack": "0" * 12, OURS: "0" * 12, TORCHATTACKS: "11" + "0" * 10})
    assert {row.provider for row in _rows(problem, found, environment)} == {"autoattack", OURS}
    assert f"without {TORCHATTACKS} on toy" in capsys.readouterr().err


def test_the_stored_verdict_decides_on_its_points_where_there_is_one(problem, environment):
    found = _of({OURS: "1100" + "1" * 8})
    total = _rows(problem, found, environment, reference="0101")[-1]
    assert total.extra["reference_points"] == 4
    assert (total.extra["reference_missed"], total.extra["reference_beyond"]) == (1, 1)
    assert total.equality.reference == "autoattack, stored verdict"
    assert "| 1 / 1 of 4 |" in autoattack_tables.totals([total])
    with pytest.raises(ValueError, match="a wrong result has no time"):
        _rows(problem, found, environment, reference="0000")


def test_a_killed_run_goes_on_with_the_round_where_it_was(tmp_path):
    path, carried = tmp_path / "case.json", []

    def carry_out(turn: int) -> Round:
        if len(carried) == 2:
            raise KeyboardInterrupt
        carried.append(turn)
        return _of({OURS: "0" * 12}, fastadv=dict(cpu=1.0 + turn))

    with pytest.raises(KeyboardInterrupt):
        autoattack_runs.rounds_of({"n": 12}, 3, carry_out, path)
    del carried[0]
    rounds = autoattack_runs.rounds_of({"n": 12}, 3, carry_out, path)
    assert carried == [1, 2]
    assert [r.stages[OURS][0].cpu for r in rounds] == [1.0, 2.0, 3.0]
    assert autoattack_runs.rounds_of({"n": 12}, 3, carry_out, path) == rounds
    with pytest.raises(ValueError, match="choose another --out"):
        autoattack_runs.rounds_of({"n": 13}, 3, carry_out, path)


def test_rounds_that_disagree_have_no_rows():
    masks = iter(["0" * 12, "1" * 12])
    with pytest.raises(ValueError, match="disagree .*fastadv"):
        autoattack_runs.rounds_of({}, 2, lambda turn: _of({OURS: next(masks)}), None)


def test_the_real_authors_package_runs_through_every_stage(problem):
    builds = autoattack_parties.entrants(None)
    if "autoattack" not in builds:
        pytest.skip("needs the authors' package, which is not on PyPI: AUTOATTACK_PATH")
    found = autoattack_runs.run_round(problem, EPS, builds, BUDGET, turn=1)
    stages = found.stages["autoattack"]
    assert all(stage.forwards > 0 and stage.refused == 0 for stage in stages if stage.attacked)
    assert stages[0].backwards == stages[0].attacked * (BUDGET.steps + 1)
