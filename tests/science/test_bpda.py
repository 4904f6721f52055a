"""A quantiser hides the gradient and protects nothing: BPDA (Athalye et al. 2018)."""

import pytest
import torch
from defences import Quantised, four_levels
from torch import nn

import fastadv

_EPS, _STEPS, _STEP_SIZE, _N = 0.2, 40, 0.02, 200


def _attack(**more) -> fastadv.Attack:
    return fastadv.pgd(
        fastadv.Linf(_EPS), steps=_STEPS, step_size=_STEP_SIZE, random_start=False, **more
    )


def _accuracy(model, x, y) -> float:
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())


def test_naive_pgd_leaves_the_quantised_net_as_accurate_as_it_was(trained_mnist):
    """PGD-40, eps 0.2, alpha 0.02, no random start, the first 200 test images of MNIST.

    Measured: 99.5 % before and after; the gradient is exactly zero, and the attack says so.
    """
    net, x, y = trained_mnist
    x, y, model = x[:_N], y[:_N], Quantised(net)
    clean = _accuracy(model, x, y)
    with pytest.warns(fastadv.AttackWarning, match="zero_gradient") as caught:
        x_adv = _attack()(model, x, y)
    assert caught[0].message.code == "zero_gradient"
    assert caught[0].message.count == round(clean * _N)  # all but those already wrong
    assert _accuracy(model, x_adv, y) == clean >= 0.95


def test_random_starts_alone_do_not_break_it_either(trained_mnist):
    """eps 0.2, seed 0, 200 images, 1 and 5 random starts. Measured: 98.5 % and 97.5 % survive."""
    net, x, y = trained_mnist
    x, y, model = x[:_N], y[:_N], Quantised(net)
    for restarts in (1, 5):
        attack = fastadv.pgd(fastadv.Linf(_EPS), steps=2, step_size=_STEP_SIZE, restarts=restarts)
        with pytest.warns(fastadv.AttackWarning, match="zero_gradient"):
            x_adv = attack(model, x, y)
        assert _accuracy(model, x_adv, y) >= 0.9


@pytest.mark.parametrize("surrogate", [None, lambda x: x], ids=["straight-through", "identity"])
def test_bpda_breaks_the_quantised_net(surrogate, trained_mnist):
    """The attack that left 99.5 %, through `fastadv.BPDA`. Measured: 0.0 % survive."""
    net, x, y = trained_mnist
    x, y = x[:_N], y[:_N]
    surrogate_model = nn.Sequential(fastadv.BPDA(four_levels, surrogate), net)
    result = _attack().run(surrogate_model, x, y)
    defended = Quantised(net)  # the verdict is that of the defence itself
    assert _accuracy(defended, result.x_adv, y) <= 0.05
    assert float((result.x_adv - x).abs().max()) <= _EPS * (1 + 1e-6) + 2.0**-24


def test_bpda_leaves_the_logits_as_they_are(trained_mnist):
    net, x, _ = trained_mnist
    with torch.no_grad():
        wrapped = nn.Sequential(fastadv.BPDA(four_levels), net)(x[:64])
        assert torch.equal(wrapped, Quantised(net)(x[:64]))
