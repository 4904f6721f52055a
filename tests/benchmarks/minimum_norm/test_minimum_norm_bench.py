"""The suite of minimum-norm attacks: what it counts, what it calls optimal, and its rows."""

import json

import pytest
import torch

import fastadv
from benchmarks.harness.networks import Problem
from benchmarks.minimum_norm import __main__ as suite
from benchmarks.minimum_norm import curves, entrants, least, points, runs, tables
from benchmarks.minimum_norm.counted import Counted
from benchmarks.minimum_norm.optimality import optimality, tightened
from fastadv.data import load_digits
from fastadv.models import digits_net


class _Above(torch.nn.Module):
    """Class 1 where the first entry exceeds 0.5."""

    def forward(self, x):
        return torch.stack([torch.zeros_like(x[:, 0]), x[:, 0] - 0.5], 1)


@pytest.fixture
def problem():
    x = torch.tensor([[0.1, 0.0, 0.0], [0.3, 1.0, 0.0], [0.4, 0.0, 1.0]])
    return Problem("above", "none", _Above(), x, torch.zeros(3, dtype=torch.int64))


def test_queries_count_for_their_own_sample_in_any_order(problem):
    counted = Counted(problem.model, problem.x, problem.y, "l2")
    moved = problem.x.clone()
    moved[:, 0] = torch.tensor([0.7, 0.6, 1.5])  # the last one is clamped to 1
    counted(moved[[2, 0, 1]])
    assert counted.nearest.tolist() == pytest.approx([0.6, 0.3, 0.6])
    counted(problem.x[:1] + torch.tensor([0.41, 0.0, 0.0]))
    assert counted.nearest.tolist() == pytest.approx([0.41, 0.3, 0.6])
    assert (counted.forwards, counted.backwards) == (4 / 3, 0)


def test_every_backward_pass_counts_its_rows(problem):
    counted = Counted(problem.model, problem.x, problem.y, "l2")
    x = problem.x.clone().requires_grad_(True)
    logits = counted(x)
    for k in range(2):
        torch.autograd.grad(logits[:, k].sum(), x, retain_graph=True, allow_unused=True)
    counted(problem.x)
    assert counted.passed[0][0] == 3 and counted.passed[1] == [3, 0]
    assert counted.forwards == 2 and counted.backwards == counted.passed[0][1] > 0


def test_a_pixel_at_a_bound_or_beyond_keeps_its_gradient(problem):
    counted = Counted(problem.model, problem.x, problem.y, "l2")
    x = torch.tensor([[0.0, 0, 0], [1.0, 1, 0], [1.5, 0, 1]], requires_grad=True)
    grad = torch.autograd.grad(counted(x)[:, 1].sum(), x)[0]
    assert grad[:, 0].tolist() == [1, 1, 1]


def test_optimality_is_the_area_between_the_curves():
    least_known = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    assert optimality(least_known, least_known) == 1
    assert optimality(torch.full((3,), torch.inf), least_known) == 0
    # areas up to D = 4: 7 / 3 at the least, 10 / 3 where the second is found at 3 and the third not
    found = torch.tensor([2.0, 4.0, torch.inf], dtype=torch.float64)
    assert optimality(found, least_known) == pytest.approx(1 - (10 / 3 - 7 / 3) / (4 - 7 / 3))
    with pytest.raises(ValueError, match="same samples"):
        optimality(found[:2], least_known)


def test_a_norm_is_bounded_by_those_of_smaller_p():
    of = dict(l1=[2.0, 5.0], l2=[3.0, 1.0], linf=[2.5, 0.5])
    tight = tightened({name: torch.tensor(values) for name, values in of.items()})
    assert {n: v.tolist() for n, v in tight.items()} == dict(
        l1=[2.0, 5.0], l2=[2.0, 1.0], linf=[2.0, 0.5]
    )


def _crossing(step):
    def attack(model, x, y):
        moved = x.clone().requires_grad_(True)
        torch.autograd.grad(model(moved)[:, 1].sum(), moved)
        moved = x.clone()
        moved[:, 0] = 0.5 + step
        model(moved)
        return moved

    return entrants.Entrant(f"crosses by {step}", lambda norm, steps: attack)


def test_a_row_says_how_near_and_for_how_many_passes(problem, environment):
    known = 0.5 - problem.x[:, 0].double()
    algorithm = entrants.Algorithm("toy", 1, ("l2",), (_crossing(1e-6), _crossing(0.1)))
    rows = suite.run_case(algorithm, "l2", problem, known, environment, rounds=1)
    near, far = (row.extra for row in rows)
    assert near["optimality"] == pytest.approx(1, abs=1e-4) and far["optimality"] < 1
    assert far["optimality"] == pytest.approx(optimality(known + 0.1, known), abs=1e-3)
    assert (near["forwards"], near["backwards"], near["failed"]) == (2, 1, 0)
    assert rows[0].ratio == 1 and all(row.equality.error == 0 for row in rows)
    lines = tables.attacks(rows).splitlines()
    assert f"| toy x 1 | l2 | crosses by 1e-06 | 1 | {near['optimality']:.3f} |" in lines[2]
    assert f"| {far['optimality']:.3f} | 0 of 3 | 2 + 1 |" in lines[3]


def test_a_point_that_the_model_gets_right_is_none(problem):
    found = runs.Found(lambda model, x, y: x, problem, "l2")
    assert found.returned.isinf().all() and found.nearest.isinf().all()


def test_the_least_is_kept_and_entered_with_what_was_known(problem, monkeypatch, tmp_path):
    own = entrants.Entrant(entrants.OURS, _crossing(0.06).make)
    monkeypatch.setattr(least, "ALGORITHMS", (entrants.Algorithm("toy", 1, ("l2",), (own,)),))
    joint = {0: 0.07, 1: 0.05, 2: 0.08}  # by the seed
    monkeypatch.setattr(least, "minimum_norm", lambda seed: _crossing(joint[seed]))
    monkeypatch.setattr(least, "FILE", tmp_path / "least.json")
    monkeypatch.setattr(points, "load", lambda folder, name, which: problem)
    folder = tmp_path / "models" / "reference" / "minimum_norm"
    folder.mkdir(parents=True)
    stored = {"optimum": {"distance": [0.4, 0.9, 0.9]}}
    (folder / "above__l2.json").write_text(json.dumps(stored))
    models = tmp_path / "models"
    assert least.read(models, "above", "l2", "report").tolist() == [0.4, 0.9, 0.9]
    for network, which in (("below", "report"), ("above", "tune")):
        with pytest.raises(ValueError, match="least` first"):
            least.read(models, network, "l2", which)
    for _ in range(2):  # the second time from the folder
        least.write(models, tmp_path / "out", ["above"], ["l2"], "report")
        monkeypatch.setattr(least, "Found", None)
    assert least.read(models, "above", "l2", "report").tolist() == pytest.approx([0.4, 0.25, 0.15])


def test_peers_that_are_missing_are_named(problem, environment, capsys):
    def make(norm, steps):
        raise entrants.Unavailable("nobody is there")

    algorithm = entrants.Algorithm("toy", 1, ("l2",), (entrants.Entrant("peer", make),))
    known = torch.ones(3, dtype=torch.float64)
    assert suite.run_case(algorithm, "l2", problem, known, environment, rounds=1) == []
    assert "peer: nobody is there" in capsys.readouterr().out


def test_each_class_of_a_vectorised_backward_pass_is_counted():
    net = torch.nn.Linear(2, 3)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0, -0.5], [-1.0, 1.0], [0.5, -1.0]]))
        net.bias.zero_()
    x = torch.tensor([[0.6, 0.4], [0.9, 0.5]])
    y = net(x).argmax(1)
    counted = Counted(net, x, y, "l2")
    result = fastadv.deepfool(fastadv.L2()).run(counted, x, y)
    assert result.success.all() and counted.backwards == result.backwards / 2 > 1
    assert counted.forwards == result.forwards / 2


def test_a_curve_of_distances_stands_beside_autoattack_at_each_radius(environment):
    x, y = load_digits("test")
    problem = Problem("digits", "UCI digits, test", digits_net(weights="fast-at"), x[:8], y[:8])
    reference, ours = curves.rows_of(problem, 0.18, environment, budget=200)
    assert (reference.provider, ours.provider) == (curves.REFERENCE, curves.OURS)
    robust = [
        [row.extra[name] for name in row.extra if name.startswith("robust at")]
        for row in (reference, ours)
    ]
    assert robust[0] == sorted(robust[0], reverse=True) and len(robust[0]) == 8
    assert robust[0][0] == 8 > robust[0][-1]
    more = max(b - a for a, b in zip(*robust, strict=True))
    assert ours.equality.error == max(0, more)
    lines = tables.curves([reference, ours]).splitlines()
    assert lines[2].startswith("| digits | 0.045 | 8 | 8 | 8 | 0 |")
