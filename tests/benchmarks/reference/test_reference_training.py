"""The textbook training steps on plain cross-entropy against closed forms on linear models."""

import pytest
import torch
from two_class_linear import (
    LABEL,
    LR,
    assert_trained_on,
    linear,
    margin,
    row,
    sgd,
    small_net,
    weights_after_one_update_at,
)

from benchmarks.reference import (
    fast_step,
    free_replays,
    mart_step,
    nfgsm_step,
    pgd_step,
    trades_step,
    yopo_step,
)
from fastadv import textbook

pytestmark = pytest.mark.usefixtures("clamp_rule_in_force")


@pytest.mark.parametrize(
    ("clamp_start", "x_adv"),
    [
        # the gradient's sign is (-, +); 0.05 - 0.1 lies outside the image: an unclamped start
        # remembers it (-0.1 + 0.08), a clamped one starts from -0.05
        (False, row(0.5 + 0.04 - 0.08, 0.05 - 0.1 + 0.08)),
        (True, row(0.5 + 0.04 - 0.08, 0.05 - 0.05 + 0.08)),
    ],
)
def test_fast_trains_on_one_step_from_the_noise(clamp_start, x_adv):
    model = linear()
    loss = fast_step(
        model,
        sgd(model),
        row(0.5, 0.05),
        LABEL,
        eps=0.2,
        step_size=0.08,
        noise=row(0.04, -0.1),
        clamp_start=clamp_start,
    )
    assert_trained_on(model, loss, x_adv)


def test_fast_stays_in_the_eps_box_and_in_the_image():
    model = linear()
    loss = fast_step(
        model,
        sgd(model),
        row(0.5, 0.9),
        LABEL,
        eps=0.2,
        step_size=0.25,
        noise=row(-0.1, 0.15),
        clamp_start=False,
    )
    assert_trained_on(model, loss, row(0.3, 1.0))  # -0.35 cut to eps, then 0.9 + 0.2 to 1


def test_pgd_trains_on_the_sum_of_its_steps_from_the_clamped_noise():
    model = linear()
    loss = pgd_step(
        model,
        sgd(model),
        row(0.5, 0.05),
        LABEL,
        eps=0.2,
        step_size=0.03,
        steps=3,
        noise=row(0.1, -0.1),
    )
    assert_trained_on(model, loss, row(0.5 + 0.1 - 0.09, 0.0 + 0.09))


def test_pgd_takes_the_steps_of_the_textbook_attack():
    net, generator = small_net(), torch.Generator().manual_seed(0)
    x = torch.rand(5, 4, generator=generator, dtype=torch.float64)
    noise = 0.6 * torch.rand(5, 4, generator=generator, dtype=torch.float64) - 0.3
    y = torch.tensor([0, 1, 2, 0, 1])
    expected = textbook.pgd(
        net, x, y, eps=0.3, step_size=0.1, steps=4, x_init=(x + noise).clamp(0, 1)
    )
    seen = []
    net.register_forward_hook(lambda *call: seen.append(call[1][0].detach()))
    pgd_step(net, sgd(net), x, y, eps=0.3, step_size=0.1, steps=4, noise=noise)
    assert not torch.equal(seen[1] - seen[0], seen[2] - seen[1])  # the path is not a straight line
    torch.testing.assert_close(seen[-1], expected)


def test_free_steps_delta_by_eps_and_the_weights_by_the_gradient_at_the_old_delta():
    model, x = linear(), row(0.5, 0.95)
    delta = torch.zeros(1, 2, dtype=torch.float64)
    loss = free_replays(model, sgd(model), x, LABEL, delta, eps=0.1, replays=1)
    torch.testing.assert_close(delta.detach(), row(-0.1, 0.05))  # 0.95 + 0.1 leaves the image
    assert_trained_on(model, loss, x)


def test_free_goes_on_from_the_delta_and_the_weights_of_the_last_replay():
    model, x = linear(), row(0.5, 0.5)
    delta = torch.zeros(1, 2, dtype=torch.float64)
    loss = free_replays(model, sgd(model), x, LABEL, delta, eps=0.1, replays=2)
    once = weights_after_one_update_at(x)
    at = row(0.4, 0.6)
    torch.testing.assert_close(loss, torch.log1p(torch.exp(-margin(at, once)))[0])
    push = LR * torch.sigmoid(-margin(at, once)) * at[0]
    torch.testing.assert_close(model.weight.detach(), once + torch.stack([push, -push]))
    torch.testing.assert_close(delta.detach(), row(-0.1, 0.1))  # a second step of eps is cut


def test_free_forgets_the_gradient_of_the_replay_before():
    model = linear()
    delta = torch.zeros(1, 2, dtype=torch.float64)
    # the first update turns w from (2, -3) to (33, 28) about, so that the second gradient is tiny
    optimizer = torch.optim.SGD(model.parameters(), lr=50.0)
    free_replays(model, optimizer, row(0.5, 0.5), LABEL, delta, eps=0.1, replays=2)
    torch.testing.assert_close(delta.detach(), row(-0.1, 0.0))


def test_free_keeps_the_rows_of_delta_that_a_short_batch_does_not_use():
    model = linear()
    delta = torch.tensor([[0.0, 0.0], [0.07, -0.03]], dtype=torch.float64)
    free_replays(model, sgd(model), row(0.5, 0.5), LABEL, delta, eps=0.1, replays=3)
    torch.testing.assert_close(delta.detach()[1:], row(0.07, -0.03), rtol=0, atol=0)


def test_free_steps_the_scheduler_once_a_replay():
    model = linear()
    optimizer = sgd(model)
    halving = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    delta = torch.zeros(1, 2, dtype=torch.float64)
    free_replays(
        model, optimizer, row(0.5, 0.5), LABEL, delta, eps=0.1, replays=3, scheduler=halving
    )
    assert optimizer.param_groups[0]["lr"] == LR / 8


@pytest.mark.parametrize(
    ("x", "noise", "x_adv"),
    [
        # -0.2 - 0.1 is kept whole; the noise -0.15 is cut to -0.1 before the step of +0.1
        (row(0.6, 0.1), row(-0.2, -0.15), row(0.3, 0.1)),
        (row(0.05, 0.95), row(0.0, 0.0), row(0.0, 1.0)),
    ],
)
def test_nfgsm_leaves_the_eps_box_but_not_the_image(x, noise, x_adv):
    model = linear()
    loss = nfgsm_step(model, sgd(model), x, LABEL, step_size=0.1, noise=noise)
    assert_trained_on(model, loss, x_adv)


@pytest.mark.parametrize(
    ("name", "forwards", "weight_gradients"),
    [
        ("fast", 2, 2),
        ("pgd", 4, 4),
        ("free", 3, 3),
        ("nfgsm", 2, 1),
        ("trades", 9, 1),
        ("mart", 5, 1),
        ("yopo", 2, 2),
    ],
)
def test_the_cost_is_that_of_the_authors_code(name, forwards, weight_gradients):
    """Attacks of 3 steps: backwards that reach the weights, clean outputs that TRADES repeats."""
    net = small_net()
    update = {"model": net, "optimizer": sgd(net)}
    x, y = torch.full((2, 4), 0.5, dtype=torch.float64), torch.tensor([0, 1])
    noise = torch.full_like(x, 0.01)
    common = {**update, "x": x, "y": y, "eps": 0.1}
    attack = {**common, "step_size": 0.05, "noise": noise}
    steps = {
        "fast": lambda: fast_step(**attack, clamp_start=True),
        "pgd": lambda: pgd_step(**attack, steps=3),
        "free": lambda: free_replays(**common, delta=torch.zeros_like(x), replays=3),
        "nfgsm": lambda: nfgsm_step(**update, x=x, y=y, step_size=0.05, noise=noise),
        "trades": lambda: trades_step(**attack, steps=3, beta=6.0),
        "mart": lambda: mart_step(**attack, steps=3, beta=6.0),
        "yopo": lambda: yopo_step(**attack, first_layer=net[0], outer=2, inner=3),
    }
    calls = []
    net.register_forward_hook(lambda *call: calls.append("forward"))
    net.get_parameter("2.weight").register_hook(lambda grad: calls.append("weights"))
    steps[name]()
    assert (calls.count("forward"), calls.count("weights")) == (forwards, weight_gradients)
