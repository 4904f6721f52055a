"""The yardstick itself: closed forms on a linear model, and equality with fastadv's iterates."""

import pytest
import torch
from torch import nn

import fastadv
from fastadv import textbook
from fastadv.data import load_digits
from fastadv.models import digits_net


def linear_model(weights: list[list[float]]) -> nn.Module:
    model = nn.Linear(len(weights[0]), len(weights), bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor(weights))
    return model


def test_fgsm_moves_by_eps_against_the_weights_of_the_label():
    model = linear_model([[1.0, -2.0, 0.0], [0.0, 0.0, 0.0]])
    x = torch.tensor([[0.5, 0.5, 0.5]])
    got = textbook.fgsm(model, x, torch.tensor([0]), eps=0.1)
    torch.testing.assert_close(got, torch.tensor([[0.4, 0.6, 0.5]]))


def test_fgsm_in_l2_moves_by_eps_along_the_gradient():
    model = linear_model([[3.0, -4.0], [0.0, 0.0]])
    x = torch.tensor([[0.5, 0.5]])
    got = textbook.fgsm(model, x, torch.tensor([0]), eps=0.1, norm="l2")
    torch.testing.assert_close(got, torch.tensor([[0.5 - 0.06, 0.5 + 0.08]]))


def test_pgd_ends_in_the_worst_corner_of_a_linear_model():
    model = linear_model([[1.0, -2.0, 3.0], [0.0, 0.0, 0.0]])
    x = torch.tensor([[0.5, 0.95, 0.02]])
    got = textbook.pgd(
        model,
        x,
        torch.tensor([0]),
        eps=0.1,
        steps=20,
        step_size=0.02,
        generator=torch.Generator().manual_seed(0),
    )
    torch.testing.assert_close(got, torch.tensor([[0.4, 1.0, 0.0]]))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_iterates_stay_in_ball_and_bounds(norm):
    x, y = load_digits("test")
    got = textbook.pgd(
        digits_net(0),
        x[:50],
        y[:50],
        eps=0.2,
        steps=3,
        step_size=0.15,
        norm=norm,
        restarts=2,
        generator=torch.Generator().manual_seed(0),
    )
    threat = {"linf": fastadv.Linf, "l2": fastadv.L2}[norm](0.2)
    assert bool(fastadv.contains(threat, got, x[:50]).all())


def test_a_restart_that_fools_the_model_is_kept():
    x, y = load_digits("test")
    net, x, y = digits_net(0), x[:50], y[:50]

    def fooled(restarts: int) -> torch.Tensor:
        got = textbook.pgd(
            net,
            x,
            y,
            eps=0.02,
            steps=1,
            step_size=0.01,
            restarts=restarts,
            generator=torch.Generator().manual_seed(3),
        )
        return net(got).argmax(1) != y

    assert bool((fooled(4) | ~fooled(1)).all())


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_fastadv_takes_the_same_steps_from_the_same_start(norm):
    """An untrained network: no saturated softmax, whose gradients differ in their last bits."""
    x, y = load_digits("test")
    x, y, net = x[:64], y[:64], digits_net(1)
    threat = {"linf": fastadv.Linf, "l2": fastadv.L2}[norm](0.3)
    x_init = fastadv.start_point(threat, x, seed=5)
    attack = fastadv.pgd(threat, steps=5, step_size=0.07, keep="last", seed=5)
    ours = attack(net, x, y, x_init=x_init)
    theirs = textbook.pgd(net, x, y, eps=0.3, steps=5, step_size=0.07, norm=norm, x_init=x_init)
    # five steps, a rounding of x of at most 2^-24 in each operation
    torch.testing.assert_close(ours, theirs, rtol=0, atol=5 * 4 * 2**-24)


def test_another_norm_is_refused():
    with pytest.raises(ValueError, match="norm must be 'linf' or 'l2'; got 'l1'"):
        textbook.fgsm(nn.Identity(), torch.zeros(1, 2), torch.zeros(1).long(), eps=0.1, norm="l1")
