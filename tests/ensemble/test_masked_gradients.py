"""The checks of an ensemble: each sign of a weak evaluation is warned of, and nothing else is."""

import warnings

import pytest
import torch
from members import custom_ensemble, member_problem
from toy_models import NORMS, threat_of

import fastadv


def _codes(model, p, ensemble):
    """code -> count of the warnings of a run."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ensemble.run(model, p.x, p.y)
    assert all(isinstance(w.message, fastadv.AttackWarning) for w in caught)
    return {w.message.code: w.message.count for w in caught}


def _gradient_attacks(threat):
    return fastadv.autoattack(threat, "custom", attacks=[fastadv.apgd_ce(threat, steps=2)])


@pytest.mark.parametrize("norm", NORMS)
def test_an_ordinary_model_is_not_warned_of(norm):
    p = member_problem(16)
    attacks = [a for a in custom_ensemble(norm).attacks if a.constructor != "square"]
    ensemble = fastadv.autoattack(threat_of(norm), "custom", attacks=attacks)
    assert _codes(p.model, p, ensemble) == {}
    assert _codes(torch.nn.Sequential(p.model, torch.nn.Dropout(0.5)), p, ensemble) == {}


def test_a_randomised_model_is_warned_of_but_not_by_rand():
    p = member_problem(16)

    def noisy(z):
        return p.model(z + 0.05 * torch.randn_like(z))

    codes = _codes(noisy, p, _gradient_attacks(threat_of("linf")))
    assert codes["randomised"] == 16
    threat = threat_of("linf")
    rand = fastadv.autoattack(threat, "rand")
    assert "randomised" not in _codes(noisy, p, rand)


def test_one_sample_with_a_random_answer_is_counted_as_one():
    p = member_problem(16)

    def noisy(z):
        logits = p.model(z)
        if len(z) == 16 and torch.equal(z.detach(), p.x):
            logits = logits.clone()
            logits[3] = logits[3] + torch.randn(5)
        return logits

    assert _codes(noisy, p, _gradient_attacks(threat_of("linf")))["randomised"] == 1


def test_probabilities_are_warned_of():
    p = member_problem(16)
    codes = _codes(lambda z: p.model(z).softmax(1), p, _gradient_attacks(threat_of("linf")))
    assert codes == {"probabilities": 16}


def _takes_grad(net):
    def model(z):
        with torch.enable_grad():
            leaf = z.detach().requires_grad_()
            (grad,) = torch.autograd.grad(net(leaf).sum(), leaf)
        return net(z + 0 * grad)

    return model


def _goes_backward(net):
    def model(z):
        with torch.enable_grad():
            leaf = z.detach().requires_grad_()
            net(leaf).sum().backward()
        return net(z + 0 * leaf.grad)

    return model


@pytest.mark.parametrize("make", [_takes_grad, _goes_backward])
def test_a_model_that_differentiates_inside_is_warned_of(make):
    p = member_problem(16)
    assert _codes(make(p.model), p, _gradient_attacks(threat_of("linf"))) == {"dynamic": 16}
    assert all(w.grad is None for w in p.model.parameters())


class _Steps(torch.autograd.Function):
    """Rounded to 256 levels: a gradient of zero, as quantising defences have."""

    @staticmethod
    def forward(ctx, z):
        return (z * 255).round() / 255

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        return torch.zeros_like(grad)


def test_masked_gradients_are_warned_of_where_square_breaks_them():
    p = member_problem(16, wrong_every=20)
    threat = threat_of("linf", 2.5)
    attacks = [
        fastadv.apgd_ce(threat, steps=2),
        fastadv.fab_t(threat, steps=2, n_target_classes=1),
        fastadv.square(threat, queries=60),
    ]
    ensemble = fastadv.autoattack(threat, "custom", attacks=attacks)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = ensemble.run(lambda z: p.model(_Steps.apply(z)), p.x, p.y)
    codes = {w.message.code: w.message.count for w in caught}
    assert codes.keys() == {"zero_gradient", "square_gains"}
    assert codes["square_gains"] == result.stages[2].broken > 0
    assert codes["zero_gradient"] == result.stages[0].attacked - int(
        ((result.broken_by == 0) & (result.step == 0)).sum()
    )


def test_square_alone_or_first_gains_nothing_behind_gradients():
    p = member_problem(16)
    threat = threat_of("linf", 2.5)
    attacks = [fastadv.square(threat, queries=60), fastadv.apgd_ce(threat, steps=2)]
    ensemble = fastadv.autoattack(threat, "custom", attacks=attacks)
    assert _codes(p.model, p, ensemble) == {}
