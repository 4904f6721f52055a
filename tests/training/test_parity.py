"""The steps follow the authors' algorithms: same data and noise in, same weights out."""

import copy
import functools

import pytest
import torch
from torch import nn
from training_problems import (
    CRAFTED,
    METHODS,
    SHAPE,
    THREAT,
    batches,
    conv_net,
    largest_difference,
    train_batch,
    uniform,
)

import fastadv
from benchmarks import reference
from benchmarks.clamping.rules import RULES
from fastadv import training
from fastadv.ops.noise.start import random_start
from fastadv.training import craft

STEPS = 20  # optimizer steps
EPS = 0.1
# 1e-5 would do in fp32; in float64 what is left is rounding
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
OUTER = 2  # of YOPO


def _optimizer(kind, model, scale=1.0):
    """`scale`: how many times smaller the gradients are than the textbook's."""
    if kind == "sgd":
        return torch.optim.SGD(model.parameters(), lr=0.1 * scale, momentum=0.9)
    return torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-8 / scale)


def _into_image(x_adv):
    return x_adv.clamp(0, 1)


def _same(x_adv):
    return x_adv


OLD, NEW = RULES
# of three parameters with two values each every pair of values, in half of the product
PAIRS = pytest.mark.parametrize(
    ("dtype", "optimizer", "clamp_rule_in_force"),
    [
        (torch.float32, "sgd", OLD),
        (torch.float32, "adam", NEW),
        (torch.float64, "sgd", NEW),
        (torch.float64, "adam", OLD),
    ],
    indirect=["clamp_rule_in_force"],
    ids=lambda value: str(value),
)

# name: ours, the textbook's, the radius of the noise, what becomes of x + noise before the craft
_CASES = {
    "fast": (
        functools.partial(training.FastAT, step_size=1.25 * EPS),
        functools.partial(reference.fast_step, eps=EPS, step_size=1.25 * EPS, clamp_start=False),
        EPS,
        _same,
    ),
    "fast, clamped": (
        functools.partial(training.FastAT, step_size=1.25 * EPS, clamp_start=True),
        functools.partial(reference.fast_step, eps=EPS, step_size=1.25 * EPS, clamp_start=True),
        EPS,
        _into_image,
    ),
    "nfgsm": (
        training.NFGSM,
        functools.partial(reference.nfgsm_step, step_size=EPS),
        2 * EPS,
        _into_image,
    ),
    "pgd": (
        functools.partial(training.PGDAT, steps=4, step_size=0.03),
        functools.partial(reference.pgd_step, eps=EPS, step_size=0.03, steps=4),
        EPS,
        _into_image,
    ),
    "trades": (
        functools.partial(training.TRADES, steps=4, step_size=0.03, beta=6.0),
        functools.partial(reference.trades_step, eps=EPS, step_size=0.03, steps=4, beta=6.0),
        0.001,
        _same,
    ),
    "mart": (
        functools.partial(training.MART, steps=4, step_size=0.03, beta=5.0),
        functools.partial(reference.mart_step, eps=EPS, step_size=0.03, steps=4, beta=5.0),
        0.001,
        _same,
    ),
    "yopo": (
        functools.partial(training.YOPO, first_layer="0", outer=OUTER, inner=3, step_size=0.03),
        functools.partial(reference.yopo_step, eps=EPS, step_size=0.03, outer=OUTER, inner=3),
        EPS,
        _same,
    ),
}


def _train_both(case, net, optimizer, *, dtype, **settings):
    """Both through the same batches and noise; the two networks."""
    make, textbook, radius, starting = _CASES[case]
    if case == "trades" and dtype == torch.float32:
        radius = EPS  # see test_the_signs_that_trades_gets_wrong_...
    ours, theirs = net, copy.deepcopy(net)
    scale = OUTER if case == "yopo" else 1
    our_optimizer, their_optimizer = (
        _optimizer(optimizer, ours, scale),
        _optimizer(optimizer, theirs),
    )
    step = make(THREAT, **settings)
    more = {"first_layer": theirs[0]} if case == "yopo" else {}
    for i, (x, y) in enumerate(batches(STEPS, dtype=dtype)):
        noise = uniform(x, radius, seed=i)
        train_batch(step, ours, our_optimizer, x, y, x_init=starting(x + noise))
        textbook(theirs, their_optimizer, x, y, noise=noise, **more)
    return ours, theirs


@PAIRS
@pytest.mark.parametrize("case", _CASES)
def test_the_weights_are_those_of_the_textbook_loop(case, dtype, optimizer, clamp_rule_in_force):
    net = conv_net(dtype=dtype)
    before = copy.deepcopy(net)
    ours, theirs = _train_both(case, net, optimizer, dtype=dtype)
    assert largest_difference(ours, before) > 1e-3  # they moved
    assert largest_difference(ours, theirs) <= TOLERANCE[dtype]


def test_the_signs_that_trades_gets_wrong_at_its_own_start_are_as_many_as_the_textbook_gets():
    """At x + 0.001 n, f(x_adv) - f(x) cancels: fp32 cannot tell the sign of the smallest gradients.

    One such sign and the two loops part by 1e-4 within 20 steps, so that parity in fp32 is tested
    from a wider start; float64 has it from this one.
    """
    net, exact = conv_net(), conv_net(dtype=torch.float64)
    with torch.no_grad():
        for weight, double in zip(net.parameters(), exact.parameters(), strict=True):
            double.copy_(weight)
    wrong = {"ours": 0, "textbook": 0}
    for i, (x, _) in enumerate(batches(STEPS)):
        x_adv = x + uniform(x, 0.001, seed=i)
        signs = {"exact": _divergence_gradient(exact, x.double(), x_adv.double()).sign()}
        signs["textbook"] = _divergence_gradient(net, x, x_adv).sign()
        moved = x_adv.clone()
        y = torch.zeros(len(x), dtype=torch.int64)
        craft.ascend(
            net,
            moved,
            x,
            y,
            craft.Ascent(fastadv.Linf(1.0, bounds=None), 1, 0.25, eps=1.0, loss="kl"),
            reference=net(x).softmax(1),
        )
        signs["ours"] = (moved - x_adv).sign()
        for name in wrong:
            wrong[name] += int((signs[name] != signs["exact"]).sum())
    assert 0 < wrong["textbook"] < 1e-3 * STEPS * 16 * 64
    assert wrong["ours"] <= 2 * wrong["textbook"]


def _divergence_gradient(net, x, x_adv):
    leaf = x_adv.detach().requires_grad_()
    log_adversarial = net(leaf).log_softmax(1)
    divergence = nn.functional.kl_div(log_adversarial, net(x).softmax(1), reduction="sum")
    return torch.autograd.grad(divergence, leaf)[0]


def _train_both_free(net, optimizer, *, dtype, replays=4, sizes=None):
    ours, theirs = net, copy.deepcopy(net)
    our_optimizer, their_optimizer = _optimizer(optimizer, ours), _optimizer(optimizer, theirs)
    step = training.FreeAT(THREAT, replays=replays)
    data = batches(STEPS // replays, dtype=dtype)
    sizes = sizes or [16] * len(data)
    delta = torch.zeros((16, *SHAPE), dtype=dtype)
    for (x, y), size in zip(data, sizes, strict=True):
        x, y = x[:size], y[:size]
        train_batch(step, ours, our_optimizer, x, y)
        reference.free_replays(theirs, their_optimizer, x, y, delta, eps=EPS, replays=replays)
    return ours, theirs, step.delta, delta.detach()


@PAIRS
def test_free_has_the_weights_and_the_perturbation_of_the_textbook_loop(
    dtype, optimizer, clamp_rule_in_force
):
    net = conv_net(dtype=dtype)
    before = copy.deepcopy(net)
    ours, theirs, delta, textbook_delta = _train_both_free(net, optimizer, dtype=dtype)
    assert largest_difference(ours, before) > 1e-3
    assert largest_difference(ours, theirs) <= TOLERANCE[dtype]
    # x + delta is rounded, and delta got back from it: one rounding of a number up to 1
    assert (delta - textbook_delta).abs().max() <= 4 * torch.finfo(dtype).eps
    assert textbook_delta.abs().max() >= EPS * (1 - 1e-6)


def test_free_keeps_the_rows_that_a_short_batch_does_not_use():
    _, _, delta, textbook_delta = _train_both_free(
        conv_net(dtype=torch.float64), "sgd", dtype=torch.float64, sizes=[16, 5, 16, 9, 11]
    )
    torch.testing.assert_close(delta, textbook_delta, rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", ["fast", "fast, clamped", "pgd", "nfgsm"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_batch_statistics_in_the_craft_give_the_weights_of_the_authors_train_mode(case, dtype):
    ours, theirs = _train_both(case, conv_net(bn=True, dtype=dtype), "sgd", dtype=dtype, bn="batch")
    assert largest_difference(ours, theirs) <= TOLERANCE[dtype]
    # the authors' running statistics count crafted passes, ours do not
    assert ours[1].num_batches_tracked == STEPS < theirs[1].num_batches_tracked


@pytest.mark.parametrize("case", ["fast", "fast, clamped", "pgd", "nfgsm"])
def test_train_mode_in_the_craft_gives_the_authors_running_statistics_too(case):
    ours, theirs = _train_both(
        case, conv_net(bn=True, dtype=torch.float64), "sgd", dtype=torch.float64, bn="train"
    )
    assert largest_difference(ours, theirs) <= 1e-10
    for (name, mine), (_, textbook) in zip(
        ours.named_buffers(), theirs.named_buffers(), strict=True
    ):
        torch.testing.assert_close(mine, textbook, rtol=0, atol=1e-10, msg=name)


def test_mart_crafts_with_running_statistics_as_its_authors_do():
    ours, theirs = _train_both(
        "mart", conv_net(bn=True, dtype=torch.float64), "sgd", dtype=torch.float64
    )
    assert largest_difference(ours, theirs) <= 1e-10
    assert ours[1].num_batches_tracked == 2 * STEPS
    torch.testing.assert_close(ours[1].running_var, theirs[1].running_var, rtol=0, atol=1e-10)


def test_free_moves_running_statistics_as_the_textbook_loop():
    ours, theirs, _, _ = _train_both_free(
        conv_net(bn=True, dtype=torch.float64), "sgd", dtype=torch.float64
    )
    assert largest_difference(ours, theirs) <= 1e-10
    for mine, textbook in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(mine, textbook, rtol=0, atol=1e-10)


@pytest.mark.parametrize("clamp_start", [False, True])
@pytest.mark.parametrize("method", ["fast", "nfgsm", "pgd"])
def test_our_own_noise_is_clamped_where_the_textbook_clamps_it(method, clamp_start):
    """Without x_init: the textbook is given the noise that the step draws, before any clamp."""
    if method == "pgd":
        make = functools.partial(training.PGDAT, steps=2, step_size=0.03)
        textbook = functools.partial(reference.pgd_step, eps=EPS, step_size=0.03, steps=2)
    elif method == "nfgsm":
        make = training.NFGSM
        textbook = functools.partial(reference.nfgsm_step, step_size=EPS)
    else:
        make = training.FastAT
        textbook = functools.partial(
            reference.fast_step, eps=EPS, step_size=1.25 * EPS, clamp_start=clamp_start
        )
    ours, theirs = conv_net(dtype=torch.float64), conv_net(dtype=torch.float64)
    step = make(THREAT, seed=5, clamp_start=clamp_start)
    radius = 2 * EPS if method == "nfgsm" else EPS
    for i, (x, y) in enumerate(batches(4, dtype=torch.float64)):
        noise = random_start(x, eps=radius, seed=5, draw=i, bounds=None) - x
        assert ((x + noise < 0) | (x + noise > 1)).any()
        train_batch(step, ours, _optimizer("sgd", ours), x, y)
        textbook(theirs, _optimizer("sgd", theirs), x, y, noise=noise)
    # the textbook's PGD and N-FGSM clamp the start; Fast does as it is told
    agrees = clamp_start or method == "fast"
    assert (largest_difference(ours, theirs) <= 1e-10) == agrees


@pytest.mark.parametrize("name", CRAFTED)
def test_loss_and_the_iterator_are_the_same(name):
    ((x, y),) = batches(1)
    net = conv_net()
    (yielded,) = METHODS[name](THREAT)(net, x, y)
    assert torch.equal(yielded, METHODS[name](THREAT).loss(net, x, y))
