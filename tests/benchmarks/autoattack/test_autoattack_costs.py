"""What a step of AutoAttack's attacks dispatches beside the model, counted."""

import importlib.util

import pytest
import torch
from torch import nn

import fastadv
from benchmarks.autoattack import counts as autoattack_counts
from benchmarks.autoattack import tables as autoattack_tables
from benchmarks.autoattack.counts import PROBES, count
from benchmarks.autoattack.entrants import OURS, TORCHATTACKS, Fastadv, torchattacks
from benchmarks.harness import networks
from benchmarks.harness.tally import Tally
from fastadv.attacks.square_search import slots as square_slots
from fastadv.models.initialisation import build_seeded

MOST_OPS = {"APGD-Linf": 4, "APGD-T": 4, "FAB-T": 8, "Square-Linf": 3}


@pytest.fixture(scope="module")
def problem() -> networks.Problem:
    """Two samples of a linear model, whose ops are subtracted: few of them are soon counted."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, 8, 8, generator=generator)
    model = build_seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 10)), seed=0)
    return networks.Problem("linear", "noise", model, x, model(x).argmax(1))


@pytest.fixture(scope="module")
def ours(problem):
    return {
        name: count(Fastadv, problem, index, shorter, longer)
        for index, (name, shorter, longer) in enumerate(PROBES)
    }


class Plain(Fastadv):
    """Without the engine's look at the flags every few steps: the steps themselves."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.execution = fastadv.Execution(batching="plain")


@pytest.fixture(scope="module")
def steps(problem):
    return {
        name: count(Plain, problem, index, shorter, longer)
        for index, (name, shorter, longer) in enumerate(PROBES)
    }


@pytest.mark.parametrize("name", MOST_OPS)
def test_a_step_dispatches_few_ops_beside_the_model(steps, name):
    cost = steps[name]
    assert 2 <= cost.ops <= MOST_OPS[name], cost.names
    assert cost.evaluations == pytest.approx(2 if name == "FAB-T" else 1, abs=0.05)


@pytest.mark.parametrize("name", MOST_OPS)
def test_the_engine_adds_at_most_five_ops_every_four_steps(steps, ours, name):
    """Flags and losses joined and copied to the host, and what Square or FAB sums up for them."""
    assert 0 < ours[name].ops - steps[name].ops <= 5 / 4 + 0.05


@pytest.mark.parametrize("name", ["APGD-Linf", "APGD-T", "FAB-T"])
def test_no_step_of_a_gradient_attack_depends_on_data(ours, steps, name):
    assert ours[name].data_dependent == steps[name].data_dependent == 0


def _reads_of_square(problem, look=lambda x: None) -> int:
    """Data-dependent ops of 200 queries less those of 100."""

    def model(x):
        look(x)
        return problem.model(x)

    found = []
    for queries in (100, 200):
        attack = fastadv.square(fastadv.Linf(1e-5), queries=queries)
        with Tally() as tally:
            attack.run(model, problem.x, problem.y)
        found.append(tally.data_dependent)
    return found[1] - found[0]


def test_square_depends_on_data_only_where_it_reviews_its_batch(problem, monkeypatch):
    assert square_slots._REVIEW == 64
    assert 0 < _reads_of_square(problem) <= 2 * 2  # at query 128 and 192
    monkeypatch.setattr(square_slots, "_REVIEW", 10**9)
    assert _reads_of_square(problem) == 0
    assert _reads_of_square(problem, look=lambda x: float(x.sum())) > 90  # the count can fail


@pytest.mark.parametrize("index", range(len(PROBES)), ids=[name for name, *_ in PROBES])
def test_torchattacks_dispatches_many_times_as_many(problem, ours, index):
    if importlib.util.find_spec("torchattacks") is None:
        pytest.skip("needs torchattacks")
    # it dispatches the same at every step, so that fewer will do
    cost = count(torchattacks, problem, index, 2, 10)
    assert cost.ops > 10 * ours[PROBES[index][0]].ops and cost.data_dependent >= 2


def test_counts_are_rows_and_a_table(environment, monkeypatch):
    monkeypatch.setattr(autoattack_counts, "PROBES", (("APGD-Linf", 1, 5),))
    builds = {OURS: Fastadv}
    if importlib.util.find_spec("torchattacks") is not None:
        builds[TORCHATTACKS] = torchattacks
    rows = autoattack_counts.rows(builds, environment)
    assert [row.provider for row in rows] == list(builds)
    assert all(row.unit == "ops" and row.case == "APGD-Linf, one step" for row in rows)
    assert rows[0].ratio == pytest.approx(rows[-1].q50 / rows[0].q50)
    text = autoattack_tables.ops(rows)
    assert f"| APGD-Linf | {OURS} | {rows[0].q50:.3g} | 0 | 1 |" in text
