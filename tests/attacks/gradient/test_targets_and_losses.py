"""Targets, losses, momentum and single steps are what their papers and torch say."""

import math

import pytest
import torch
import torch.nn.functional as F
from test_results import DOUBLE, STEPS, _options, _step
from toy_models import (
    NORMS,
    differing_fields,
    mixed_problem,
    same_bits,
    threat_of,
)

import fastadv


@pytest.mark.parametrize("target", ["least_likely", "second_best"])
def test_targets_by_rule_are_those_of_the_clean_logits(target):
    problem = mixed_problem(40)
    with torch.no_grad():
        logits = problem.model(problem.x)
    problem.y[::5] = logits.argmin(1)[::5]
    # never the label, also where the label is what the rule would choose
    least = target == "least_likely"
    masked = logits.scatter(1, problem.y[:, None], math.inf if least else -math.inf)
    expected = masked.argmin(1) if least else masked.argmax(1)
    plain = logits.argmin(1) if least else logits.argsort(1)[:, -2]
    assert not torch.equal(expected, plain)
    assert (expected != problem.y).all()
    attack = fastadv.pgd(threat_of("linf", 1.5), steps=STEPS)
    by_rule = attack.run(problem.model, problem.x, problem.y, target=target)
    given = attack.run(problem.model, problem.x, problem.y, target=expected)
    assert differing_fields(by_rule, given) == []
    assert by_rule.success.any()


def test_random_targets_are_never_the_label():
    problem = mixed_problem(300, (8,), classes=3)
    seen = []

    def loss(logits, y):
        seen.append(y)
        return F.cross_entropy(logits, y, reduction="none")

    for seed in range(3):
        attack = fastadv.fgsm(fastadv.Linf(0.01), loss=loss, keep="last", seed=seed)
        attack(problem.model, problem.x, problem.y, target="random")
    assert all((drawn != problem.y).all() for drawn in seen)
    assert not torch.equal(seen[0], seen[-1])
    assert set(torch.stack(seen).flatten().tolist()) == {0, 1, 2}


def test_a_targeted_attack_needs_no_labels():
    problem = mixed_problem(20)
    target = (problem.y + 1) % 5
    for keep in ("first_success", "last"):
        attack = fastadv.pgd(threat_of("linf"), steps=STEPS, keep=keep)
        without = attack.run(problem.model, problem.x, target=target)
        labelled = attack.run(problem.model, problem.x, problem.y, target=target)
        assert same_bits(without.x_adv, labelled.x_adv)
        assert torch.equal(without.success, labelled.success)


def test_a_targeted_attack_descends_to_its_target():
    problem = mixed_problem(20)
    target = (problem.y + 1) % 5
    attack = fastadv.bim(threat_of("linf"), steps=STEPS, keep="last")
    moved = attack(problem.model, problem.x, problem.y, target=target)
    with torch.no_grad():
        before = problem.model(problem.x).log_softmax(1).gather(1, target[:, None])
        after = problem.model(moved).log_softmax(1).gather(1, target[:, None])
    assert (after > before).all()


def _cross_entropy(logits, y):
    return F.cross_entropy(logits, y, reduction="none")


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("keep", ["first_success", "best", "last"])
@pytest.mark.parametrize("norm", NORMS)
def test_a_loss_of_the_user_equals_the_built_in(norm, keep, targeted):
    problem = mixed_problem(24, dtype=DOUBLE)
    more = dict(steps=STEPS, keep=keep, **_options(norm))
    target = (problem.y + 1) % 5 if targeted else None
    built_in, own = (
        fastadv.pgd(threat_of(norm), loss=loss, **more).run(
            problem.model, problem.x, problem.y, target=target
        )
        for loss in ("ce", _cross_entropy)
    )
    assert built_in.success.any()
    assert torch.equal(own.step, built_in.step)
    torch.testing.assert_close(own.x_adv, built_in.x_adv, rtol=0, atol=1e-12)
    torch.testing.assert_close(own.loss, built_in.loss, rtol=1e-12, atol=1e-12)


def test_label_smoothing_is_that_of_torch():
    problem = mixed_problem(24, dtype=DOUBLE)

    def smoothed(logits, y):
        return F.cross_entropy(logits, y, reduction="none", label_smoothing=0.3)

    built_in = fastadv.pgd(threat_of("l2"), steps=STEPS, label_smoothing=0.3)
    own = fastadv.pgd(threat_of("l2"), steps=STEPS, loss=smoothed)
    expected, result = (a.run(problem.model, problem.x, problem.y) for a in (built_in, own))
    torch.testing.assert_close(result.x_adv, expected.x_adv, rtol=0, atol=1e-12)
    plain = fastadv.pgd(threat_of("l2"), steps=STEPS).run(problem.model, problem.x, problem.y)
    assert not torch.allclose(plain.loss, expected.loss)


@pytest.mark.parametrize("norm", NORMS)
def test_averaging_a_deterministic_model_changes_nothing(norm):
    problem = mixed_problem(24, dtype=DOUBLE)
    one, many = (
        fastadv.pgd(threat_of(norm), steps=STEPS, eot=eot, **_options(norm)).run(
            problem.model, problem.x, problem.y
        )
        for eot in (1, 3)
    )
    assert one.success.any() and torch.equal(one.step, many.step)
    torch.testing.assert_close(many.x_adv, one.x_adv, rtol=0, atol=1e-12)
    torch.testing.assert_close(many.loss, one.loss, rtol=1e-12, atol=1e-12)


def test_averaging_uses_the_mean_gradient_of_a_random_model():
    calls = []

    def model(z):  # slopes of +3, -1, -1 in turn: the mean is positive, most are not
        slope = (3.0, -1.0, -1.0)[len(calls) % 3]
        calls.append(None)
        return torch.stack([torch.zeros_like(z[:, 0]) + 2, slope * z[:, 0]], 1)

    x = torch.full((2, 1), 0.5, dtype=DOUBLE)
    attack = fastadv.bim(fastadv.Linf(0.3), steps=2, step_size=0.1, eot=3, keep="last")
    moved = attack(model, x, torch.zeros(2, dtype=torch.long))
    torch.testing.assert_close(moved, x + 0.2, rtol=0, atol=1e-12)
    assert len(calls) == 6


@pytest.mark.parametrize("norm", NORMS)
def test_momentum_is_that_of_the_paper(norm):
    problem = mixed_problem(12, dtype=DOUBLE)
    threat = threat_of(norm)
    attack = fastadv.mifgsm(threat, steps=4, decay=0.7, keep="last", **_options(norm))
    moved = attack(problem.model, problem.x, problem.y)
    x_adv, momentum = problem.x, torch.zeros_like(problem.x)
    for _ in range(4):
        leaf = x_adv.detach().requires_grad_()
        (grad,) = torch.autograd.grad(_cross_entropy(problem.model(leaf), problem.y).sum(), leaf)
        momentum = 0.7 * momentum + grad / grad.abs().flatten(1).mean(1).view(-1, 1, 1, 1)
        x_adv = _step(threat, x_adv, momentum, problem.x, threat.eps / 4)
    torch.testing.assert_close(moved, x_adv, rtol=0, atol=1e-12)


def test_fgsm_is_one_step_of_length_eps():
    problem = mixed_problem(12, dtype=DOUBLE)
    leaf = problem.x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(_cross_entropy(problem.model(leaf), problem.y).sum(), leaf)
    expected = (problem.x + 0.05 * grad.sign()).clamp(0, 1)
    moved = fastadv.fgsm(fastadv.Linf(0.05), keep="last")(problem.model, problem.x, problem.y)
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-12)


def test_rfgsm_starts_from_random_signs():
    problem = mixed_problem(12, dtype=DOUBLE)
    x = 0.3 + 0.4 * problem.x
    seen = []

    def model(z):
        seen.append(z.detach().clone())
        return problem.model(z)

    moved = fastadv.rfgsm(fastadv.Linf(0.1), keep="last")(model, x, problem.y)
    signs = (seen[0] - x) / 0.05
    torch.testing.assert_close(signs.abs(), torch.ones_like(signs), rtol=0, atol=1e-9)
    assert 0.4 < (signs > 0).double().mean() < 0.6  # 576 signs: 4.8 standard deviations
    last = ((moved - seen[0]) / 0.05).abs()
    torch.testing.assert_close(last, torch.ones_like(last), rtol=0, atol=1e-9)
