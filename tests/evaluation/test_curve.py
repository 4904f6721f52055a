"""Robustness curves: the numbers of separate evaluations, monotone, and for less."""

import json

import pytest
import torch
from torch import nn
from toy_models import mixed_problem, threat_of

import fastadv
from fastadv.evaluation import at_radius, evaluate

EPS = [0.05, 0.1, 0.2, 0.3]


def sign_model() -> nn.Module:
    """Two classes, split at x = 0.5: a sample at x falls exactly from the radius |x - 0.5| on."""
    model = nn.Linear(1, 2).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[-1.0], [1.0]]))
        model.bias.copy_(torch.tensor([0.5, -0.5]))
    return model


def line() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.linspace(0.02, 0.98, 49, dtype=torch.float64)[:, None] + 0.003
    y = (x[:, 0] > 0.5).long()
    y[::10] = 1 - y[::10]
    return x, y


@pytest.fixture
def ensemble():
    threat = threat_of("linf")
    attacks = [
        fastadv.apgd_ce(threat, steps=8),
        fastadv.apgd_t(threat, steps=6, n_target_classes=2),
        fastadv.square(threat, queries=12),
    ]
    return fastadv.autoattack(threat, version="custom", attacks=attacks)


@pytest.mark.parametrize("keep", ["first_success", "last", "best"])
@pytest.mark.parametrize("batch_size", [2, 64])
def test_on_a_line_every_radius_has_its_closed_form(keep, batch_size):
    x, y = line()
    attack = fastadv.bim(fastadv.Linf(1.0), steps=4, keep=keep)
    curve = fastadv.robustness_curve(
        sign_model(), (x, y), attack, eps=[0.3, 0.05, 0.2, 0.1], batch_size=batch_size
    )
    right = (x[:, 0] > 0.5).long() == y
    expected = right[:, None] & ((x - 0.5).abs() > torch.tensor(EPS))
    assert curve.eps == tuple(EPS) and torch.equal(curve.robust, expected)
    assert torch.equal(curve.clean_correct, right)
    assert curve.robust_accuracy == tuple(int(count) / 49 for count in expected.sum(0))
    assert len(set(curve.robust_accuracy)) == 4  # the radii differ, or this could not fail


def test_on_a_line_it_equals_separate_evaluations():
    x, y = line()
    attack = fastadv.pgd(fastadv.Linf(1.0), steps=4, restarts=2)
    curve = fastadv.robustness_curve(sign_model(), (x, y), attack, eps=EPS)
    for k, eps in enumerate(EPS):
        alone = evaluate(sign_model(), (x, y), at_radius(attack, eps))
        assert torch.equal(curve.robust[:, k], alone.robust)
        assert curve.confidence_intervals[k] == alone.confidence_interval


def test_an_ensemble_costs_fewer_passes_than_separate_runs_and_finds_as_much(ensemble):
    p = mixed_problem(40)
    eps = [0.02, 0.04, 0.06, 0.08]
    curve = fastadv.robustness_curve(p.model, (p.x, p.y), ensemble, eps=eps, batch_size=16)
    alone = [evaluate(p.model, (p.x, p.y), at_radius(ensemble, e), batch_size=16) for e in eps]
    assert len(set(curve.robust_accuracy)) == 4
    assert bool((curve.robust[:, :-1] >= curve.robust[:, 1:]).all())
    assert torch.equal(curve.robust[:, -1], alone[-1].robust)  # the largest is a whole evaluation
    assert curve.forwards[-1] == alone[-1].forwards and curve.backwards[-1] == alone[-1].backwards
    assert curve.attacked[-1] == 40 and sum(curve.attacked) < 4 * 40
    spent = sum(curve.forwards) + sum(curve.backwards)
    separate = [report.forwards + report.backwards for report in alone]
    assert spent < sum(separate)
    assert spent / max(separate) <= curve.relative_cost  # which is an upper bound


def test_a_survivor_is_not_attacked_again_nor_an_example_that_fits_a_smaller_ball():
    """Planted: the attack puts every sample at a given distance, and is asked once a radius."""
    x, y = line()
    asked = []
    attack = fastadv.bim(fastadv.Linf(1.0), steps=4)

    class Spy(nn.Module):
        def forward(self, x):
            asked.append(len(x))
            return sign_model()(x)

    curve = fastadv.robustness_curve(Spy(), (x, y), attack, eps=[1e-9, 0.9])
    # all fall at 0.9; only what was wrong to begin with lies within 1e-9 of x
    assert curve.attacked == (44, 49)
    again = fastadv.robustness_curve(sign_model(), (x, y), attack, eps=[0.001, 0.002])
    assert again.attacked == (0, 49)  # all survive 0.002
    assert torch.equal(again.robust[:, 0], again.clean_correct)


def test_a_smaller_radius_replaces_that_of_every_attack(ensemble):
    smaller = at_radius(ensemble, 0.01)
    assert smaller.threat == fastadv.Linf(0.01)
    assert all(attack.threat == fastadv.Linf(0.01) for attack in smaller.attacks)
    assert at_radius(smaller, 0.06) == ensemble
    follows = at_radius(fastadv.pgd(fastadv.L2(1.0), steps=5), 0.5)
    assert follows.effective_step_size == 2.5 * 0.5 / 5
    stays = at_radius(fastadv.pgd(fastadv.L2(1.0, bounds=(-1.0, 1.0)), step_size=0.2), 0.5)
    assert stays.effective_step_size == 0.2 and stays.threat.bounds == (-1.0, 1.0)


def test_square_is_judged_on_all_samples_of_a_radius():
    """Gradients that are masked: only Square finds anything."""

    class Masked(nn.Module):
        def forward(self, x):
            above = (x.flatten(1).mean(1) > 0.5).float() + 0 * x.sum()
            return torch.stack([0.5 - above, above - 0.5], 1)

    x = torch.full((6, 1, 5, 5), 0.52)
    threat = fastadv.Linf(0.1)
    attacks = [fastadv.apgd_ce(threat, steps=2), fastadv.square(threat, queries=30)]
    attack = fastadv.autoattack(threat, version="custom", attacks=attacks)
    with pytest.warns(fastadv.AttackWarning) as caught:
        curve = fastadv.robustness_curve(
            Masked(), (x, torch.ones(6).long()), attack, eps=[0.05, 0.2], batch_size=1
        )
        alone = evaluate(
            Masked(), (x, torch.ones(6).long()), at_radius(attack, 0.2), progress=False
        )
    assert alone.warnings["square_gains"] == alone.stages[1].broken > 0
    assert curve.warnings["square_gains"] == alone.stages[1].broken
    codes = [warning.message.code for warning in caught]
    assert codes.count("square_gains") == 2  # once a call, not once a block


def test_the_files_hold_the_numbers(tmp_path):
    x, y = line()
    attack = fastadv.bim(fastadv.Linf(1.0), steps=4)
    curve = fastadv.robustness_curve(sign_model(), (x, y), attack, eps=EPS)
    read = json.loads(curve.to_json())
    assert read["eps"] == EPS and read["robust_accuracy"] == list(curve.robust_accuracy)
    assert read["robust_accuracy_95"] == [list(i) for i in curve.confidence_intervals]
    assert read["samples"]["robust"] == curve.robust.tolist() and read["n"] == 49
    assert read["relative_cost"] == curve.relative_cost
    for k, eps in enumerate(EPS):
        accuracy = f"{100 * curve.robust_accuracy[k]:.2f} %"
        assert f"| {eps:g} | {accuracy} |" in curve.to_markdown()
        assert f"{eps:g}" in str(curve) and accuracy in str(curve)
    texts = {".json": curve.to_json(), ".md": curve.to_markdown(), ".html": curve.to_html()}
    for suffix, text in texts.items():
        curve.save(tmp_path / f"curve{suffix}")
        assert (tmp_path / f"curve{suffix}").read_text() == text
    with pytest.raises(ValueError, match="path must end in .json, .md or .html; got"):
        curve.save(tmp_path / "curve.txt")


@pytest.mark.parametrize("eps", [[], [0.1, 0.1], [0.0, 0.0], [-0.1], [float("nan")]])
def test_radii_must_be_different_numbers_and_not_negative(eps):
    with pytest.raises(ValueError, match="eps must be different radii >= 0, at least one"):
        fastadv.robustness_curve(sign_model(), line(), fastadv.bim(fastadv.Linf(1.0)), eps=eps)


def test_only_attacks_have_a_radius():
    with pytest.raises(TypeError, match="attack must be an attack or an ensemble, .*got 'pgd'"):
        at_radius("pgd", 0.1)
