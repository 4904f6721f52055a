"""The textbook steps of TRADES, MART and YOPO against closed forms on linear models."""

import math

import pytest
import torch
from torch import nn
from two_class_linear import (
    LABEL,
    LR,
    W,
    linear,
    margin,
    row,
    sgd,
    small_net,
    weights_after_one_update_at,
)

from benchmarks.reference import mart_step, trades_step, yopo_step

pytestmark = pytest.mark.usefixtures("clamp_rule_in_force")


def test_trades_trains_both_sides_of_the_divergence():
    model, beta = linear(), 6.0
    x = torch.cat([row(0.5, 0.5), row(0.6, 0.3)])
    # w.noise is 0.02 and -0.03: the divergence grows along +sign(w) and -sign(w)
    noise = torch.cat([row(0.01, 0.0), row(0.0, 0.01)])
    x_adv = torch.cat([row(0.5 + 0.01 + 0.1, 0.5 - 0.1), row(0.6 - 0.1, 0.3 + 0.01 + 0.1)])
    loss = trades_step(
        model,
        sgd(model),
        x,
        torch.tensor([0, 0]),
        eps=0.2,
        step_size=0.05,
        steps=2,
        beta=beta,
        noise=noise,
    )
    m, m_adv = margin(x), margin(x_adv)
    p, q = torch.sigmoid(m), torch.sigmoid(m_adv)
    divergence = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    torch.testing.assert_close(loss, (-p.log() + beta * divergence).mean())
    # d KL / d m = p (1 - p) (m - m_adv), d KL / d m_adv = q - p
    clean, adversarial = -(1 - p) + beta * p * (1 - p) * (m - m_adv), beta * (q - p)
    grad = (clean[:, None] * x + adversarial[:, None] * x_adv).mean(0)
    expected = torch.tensor(W, dtype=torch.float64) - LR * torch.stack([grad, -grad])
    torch.testing.assert_close(model.weight.detach(), expected)


def test_mart_weighs_the_divergence_by_the_doubt_in_the_label():
    model, beta = linear(), 5.0
    loss = mart_step(
        model,
        sgd(model),
        row(0.5, 0.3),
        LABEL,
        eps=0.2,
        step_size=0.05,
        steps=2,
        beta=beta,
        noise=row(0.01, 0.0),
    )
    p = torch.sigmoid(margin(row(0.5, 0.3)))
    q = torch.sigmoid(margin(row(0.5 + 0.01 - 0.1, 0.3 + 0.1)))
    divergence = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    expected = -q.log() - (q + 0.0001).log() + beta * divergence * (1.0000001 - p)
    torch.testing.assert_close(loss, expected[0], rtol=1e-10, atol=0)  # 1e-12 inside the logs


def test_mart_pushes_down_the_strongest_other_class():
    model = nn.Linear(2, 3, dtype=torch.float64)  # no weights: p = (0.5, 0.3, 0.2) everywhere
    with torch.no_grad():
        model.weight.zero_()
        model.bias.copy_(torch.tensor([0.5, 0.3, 0.2]).log())
    loss = mart_step(
        model,
        sgd(model),
        row(0.5, 0.5).expand(3, 2),
        torch.tensor([0, 1, 2]),
        eps=0.1,
        step_size=0.1,
        steps=1,
        beta=5.0,
        noise=torch.zeros(3, 2, dtype=torch.float64),
    )
    pairs = ((0.5, 0.3), (0.3, 0.5), (0.2, 0.5))  # of the label, of its strongest rival
    expected = sum(-math.log(own) - math.log(1.0001 - rival) for own, rival in pairs) / 3
    assert loss.item() == pytest.approx(expected, rel=1e-6)  # the bias is rounded to float32


def test_yopo_adds_a_second_gradient_of_the_first_layer_at_the_perturbed_input():
    first, head = linear(((1.0, 2.0), (3.0, -1.0))), linear()
    u = first.weight.detach().clone()
    model = nn.Sequential(first, head)
    x, noise = row(0.5, 0.95), row(0.02, -0.01)
    loss = yopo_step(
        model,
        sgd(model),
        x,
        LABEL,
        first_layer=first,
        eps=0.2,
        step_size=0.03,
        outer=1,
        inner=2,
        noise=noise,
    )
    h = (x + noise) @ u.T
    torch.testing.assert_close(loss, torch.log1p(torch.exp(-margin(h)))[0])
    # g = d loss / d h, along -(2, -3); U^T g is along (7, -7), so delta moves by (+, -), twice
    g = -torch.sigmoid(-margin(h)) * torch.tensor([2.0, -3.0], dtype=torch.float64)
    assert torch.equal((g @ u).sign(), row(1.0, -1.0)[0])
    x_adv = row(0.5 + 0.02 + 0.06, 0.95 - 0.01 - 0.06)
    torch.testing.assert_close(
        first.weight.detach(), u - LR * torch.outer(g, (x + noise + x_adv)[0])
    )
    torch.testing.assert_close(head.weight.detach(), weights_after_one_update_at(h))


def test_yopo_sums_the_full_passes_before_one_update():
    first, head = linear(((1.0, 2.0), (3.0, -1.0))), linear()
    u = first.weight.detach().clone()
    model = nn.Sequential(first, head)
    x = row(0.5, 0.98)
    loss = yopo_step(
        model,
        sgd(model),
        x,
        LABEL,
        first_layer=first,
        eps=0.1,
        step_size=0.06,
        outer=2,
        inner=1,
        noise=row(0.06, 0.06),
    )
    # The start is not clamped to the image, and the clamp before the first layer gives its second
    # pixel no gradient: it comes back to the border. The first would move to 0.62 without eps.
    passes = (row(0.56, 1.04) @ u.T, row(0.6, 1.0) @ u.T)
    torch.testing.assert_close(loss, torch.log1p(torch.exp(-margin(passes[0])))[0])
    push = torch.stack([LR * torch.sigmoid(-margin(h)) * h[0] for h in passes]).sum(0)
    expected = torch.tensor(W, dtype=torch.float64) + torch.stack([push, -push])
    torch.testing.assert_close(head.weight.detach(), expected)


def test_yopo_moves_a_pixel_at_the_border_of_the_image_and_none_outside():
    first, head = linear(((1.0, 2.0), (3.0, -1.0))), linear()
    u = first.weight.detach().clone()
    model = nn.Sequential(first, head)
    # the gradient pushes along (+, -), as above; -0.01 is outside: it only comes back to the border
    starts = torch.cat([row(0.0, 1.0), row(-0.01, 1.0)])
    x = starts.clamp(0, 1)
    yopo_step(
        model,
        sgd(model),
        x,
        LABEL.expand(2),
        first_layer=first,
        eps=0.1,
        step_size=0.06,
        outer=1,
        inner=1,
        noise=starts - x,
    )
    ends = torch.cat([row(0.06, 0.94), row(0.0, 0.94)])
    push = torch.sigmoid(-margin(starts @ u.T))[:, None] / 2
    g = -push * torch.tensor([2.0, -3.0], dtype=torch.float64)
    assert torch.equal((g @ u).sign(), row(1.0, -1.0).expand(2, 2))
    torch.testing.assert_close(first.weight.detach(), u - LR * g.T @ (starts + ends))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("step", [trades_step, mart_step])
def test_crafting_is_in_eval_mode_and_training_mode_is_left_behind(step, training):
    net = small_net().train(training)
    modes = []
    net.register_forward_hook(lambda module, *_: modes.append(module.training))
    x = torch.full((2, 4), 0.5, dtype=torch.float64)
    step(
        net,
        sgd(net),
        x,
        torch.tensor([0, 1]),
        eps=0.1,
        step_size=0.05,
        steps=2,
        beta=1.0,
        noise=torch.full_like(x, 0.01),
    )
    crafting = 4 if step is trades_step else 2
    assert modes == [False] * crafting + [True] * (len(modes) - crafting) and net.training
