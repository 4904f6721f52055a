"""D: steps whose craft ascends an objective and whose weights descend it."""

import copy
import dataclasses
import io
import warnings

import pytest
import torch
import torch.nn.functional as F
from objective_problems import (
    DOUBLE,
    EPS,
    TASKS,
    THREAT,
    Sequences,
    plain_free,
    plain_objective,
    seeded,
    sequences,
    small_net,
    trained_both,
)
from torch import nn
from training_problems import (
    METHODS,
    SHAPE,
    batches,
    conv_net,
    largest_difference,
    sgd,
    train_batch,
)

import fastadv
from fastadv import objectives, training
from fastadv.diagnostics import AttackWarning
from fastadv.training import AWP, CleanMixing, GradAlign, PerturbationBank

TAKING = ("FastAT", "NFGSM", "PGDAT", "FreeAT")
_PLAIN = {
    "FastAT": dict(steps=1, step_size=1.25 * EPS, clamp=False),
    "PGDAT": dict(steps=3, step_size=2.5 * EPS / 3),
}


@pytest.mark.parametrize("name", _PLAIN)
@pytest.mark.parametrize("task", TASKS)
def test_d_the_weights_are_those_of_a_plain_loop_with_the_loss_of_the_task(task, name):
    objective, make, _, loss = TASKS[task]
    net = seeded(make)
    before = copy.deepcopy(net)
    step = METHODS[name](THREAT, loss=objective)
    ours, theirs = trained_both(
        step, net, TASKS[task].batches(6), loss, bounds=(0, 1), **_PLAIN[name]
    )
    assert largest_difference(ours, before) > 1e-2
    assert largest_difference(ours, theirs) <= 1e-10  # what rounding leaves in float64


@pytest.mark.parametrize("task", TASKS)
def test_d_free_training_by_an_objective_is_the_plain_loop(task):
    objective, make, _, loss = TASKS[task]
    ours = seeded(make)
    theirs = copy.deepcopy(ours)
    step, delta = training.FreeAT(THREAT, replays=3, loss=objective), torch.zeros(())
    optimizer, plain = (torch.optim.SGD(n.parameters(), lr=0.2) for n in (ours, theirs))
    for x, y in TASKS[task].batches(3):
        train_batch(step, ours, optimizer, x, y)
        delta = plain_free(theirs, plain, x, y, loss, delta + torch.zeros_like(x), replays=3)
    assert largest_difference(ours, theirs) <= 1e-10
    assert torch.allclose(step.delta, delta, rtol=0, atol=1e-12) and delta.abs().max() > 0.9 * EPS


@pytest.mark.parametrize("name", _PLAIN)
def test_d_an_lstm_is_trained_as_by_a_plain_loop_with_a_named_loss(name):
    net = seeded(Sequences)
    bounds = (-torch.inf, torch.inf)
    step = METHODS[name](fastadv.Linf(EPS, bounds=None))
    ours, theirs = trained_both(
        step, net, sequences(6), F.cross_entropy, bounds=bounds, **_PLAIN[name]
    )
    assert largest_difference(ours, theirs) <= 1e-10


@pytest.mark.parametrize(
    "settings",
    [{}, {"modifiers": [CleanMixing(0.3), GradAlign(0.2), AWP(0.02)]}, {"eps_warmup": 4}],
    ids=["plain", "modifiers", "warm-up"],
)
@pytest.mark.parametrize("name", TAKING)
def test_d_an_objective_that_is_the_cross_entropy_gives_what_the_named_loss_gives(name, settings):
    nets = small_net(), small_net()
    named, own = (
        METHODS[name](THREAT, **settings),
        METHODS[name](THREAT, loss=plain_objective(), **settings),
    )
    optimizers = [sgd(net) for net in nets]
    for x, y in batches(3, dtype=DOUBLE):
        losses = [
            train_batch(step, net, optimizer, x, y)
            for step, net, optimizer in zip((named, own), nets, optimizers, strict=True)
        ]
        torch.testing.assert_close(*losses, rtol=0, atol=1e-11)
        if name != "FreeAT":
            # the head's losses are in float64 as well: nothing but the order of sums differs
            torch.testing.assert_close(named.craft_loss, own.craft_loss, rtol=0, atol=1e-11)
    assert largest_difference(*nets) <= 1e-10


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_d_in_half_precision_an_objective_judges_in_float32_and_crafts_as_the_named_loss(precision):
    ((x, y),) = batches(1)
    x = 0.2 + 0.6 * x  # no pixel at a bound
    net, seen = conv_net(), set()

    def loss(z, y):
        seen.add(z.dtype)
        return F.cross_entropy(z, y, reduction="none")

    named = training.PGDAT(THREAT, steps=1, precision=precision)
    own = training.PGDAT(THREAT, steps=1, precision=precision, loss=fastadv.Objective(loss))
    crafted = [step.craft(net, x, y).x_adv for step in (named, own)]
    # gradients whose sign is within a rounding of half precision may differ
    assert (crafted[0] != crafted[1]).double().mean() < 0.01
    assert (crafted[1] != x).double().mean() > 0.9  # float16 rounds no gradient to zero
    own.loss(net, x, y).backward()
    assert seen == {torch.float32}


@pytest.mark.parametrize("name", [name for name in TAKING if name != "FreeAT"])
def test_d_craft_advance_and_a_loss_of_ones_own_are_the_sequence_of_loss(name):
    def make():
        bank = {} if name == "NFGSM" else {"bank": PerturbationBank(16, SHAPE)}
        return METHODS[name](THREAT, eps_warmup=3, seed=4, **bank)

    whole, parts = make(), make()
    nets = conv_net(bn=True), conv_net(bn=True)
    optimizers = [sgd(net) for net in nets]
    ids = torch.arange(16)
    for x, y in batches(5):
        batch = parts.craft(nets[1], x, y, sample_ids=ids)
        own = F.cross_entropy(nets[1](batch.x_adv), y)
        loss = whole.loss(nets[0], x, y, sample_ids=ids)
        assert torch.equal(loss, own)
        for optimizer, value in zip(optimizers, (loss, own), strict=True):
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        parts.advance(own)
        assert parts.effective_eps == whole.effective_eps and parts.draw == whole.draw
        assert torch.equal(parts.train_loss, whole.train_loss)
        assert torch.equal(parts.craft_loss, whole.craft_loss)
    assert largest_difference(*nets) == 0
    states = [step.state_dict() for step in (whole, parts)]
    assert states[0].pop("bank") is None or torch.equal(whole.bank.levels, parts.bank.levels)
    states[1].pop("bank")
    assert states[0] == states[1]


def test_d_crafts_repeat_until_the_step_advances():
    ((x, y),) = batches(1)
    net, step = conv_net(), training.FastAT(THREAT, eps_warmup=2)
    first, second = (step.craft(net, x, y).x_adv for _ in range(2))
    step.advance()
    third = step.craft(net, x, y)
    assert torch.equal(first, second) and not torch.equal(first, third.x_adv)
    assert third.eps == EPS and step.train_loss is None


def test_d_the_state_of_a_step_with_an_objective_resumes_bit_for_bit():
    task = TASKS["segmentation"]
    net, data = seeded(task.net), task.batches(4)

    def make():
        bank = PerturbationBank(16, SHAPE)
        return training.PGDAT(THREAT, steps=2, loss=task.objective, bank=bank)

    step, ids = make(), torch.arange(16)
    for x, y in data[:2]:
        train_batch(step, net, sgd(net), x, y, sample_ids=ids)
    file = io.BytesIO()
    torch.save(step.state_dict(), file)
    file.seek(0)
    resumed = make()
    resumed.load_state_dict(torch.load(file, weights_only=True))
    x, y = data[2]
    losses = [s.loss(net, x, y, sample_ids=ids) for s in (step, resumed)]
    assert torch.equal(*losses) and step.bank.levels.abs().max() == 127


def test_d_y_reaches_the_objective_as_it_is_given():
    ((x, _),) = batches(1)
    y = torch.randn(16, 2, 3, dtype=torch.float16, requires_grad=True)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.Unflatten(1, (2, 3)))
    seen = []

    def loss(output, given):
        seen.append(given)
        return (output - given).square().mean((1, 2))

    step = training.FastAT(THREAT, loss=fastadv.Objective(loss))
    x_adv = step.craft(net, x, y).x_adv
    value = step.loss(net, x, y)
    assert all(given.data_ptr() == y.data_ptr() and given.dtype == y.dtype for given in seen)
    assert torch.equal(value, loss(net(x_adv), y).mean()) and len(seen) == 4
    value.backward()
    assert y.grad is None and net[1].weight.grad.abs().max() > 0


def test_d_a_model_that_clamps_is_noticed_whatever_its_outputs():
    class Clamped(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, x):
            return self.net(F.hardtanh(x, 0.0, 1.0))

    for task in TASKS.values():
        net = seeded(task.net)
        ((x, y),) = task.batches(1)
        step, bare = (
            training.PGDAT(THREAT, steps=2, loss=task.objective, random_start=False)
            for _ in range(2)
        )
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", AttackWarning)
            x_adv = step.craft(Clamped(net), x, y).x_adv
        assert [w.category for w in caught] == [AttackWarning]
        # the gradient is taken a rounding inside, where its sign is that of the bare network's
        assert (x_adv != bare.craft(net, x, y).x_adv).double().mean() < 0.01


@pytest.mark.parametrize("name", TAKING)
def test_d_a_repr_with_an_objective_can_be_pasted_back_and_replace_keeps_it(name):
    objective = objectives.segmentation(fraction=0.2, ignore_index=11)
    step = METHODS[name](THREAT, loss=objective)
    assert "loss=fastadv.objectives.segmentation(fraction=0.2, ignore_index=11)" in repr(step)
    pasted = eval(repr(step), {"fastadv": fastadv})
    replaced = dataclasses.replace(step, seed=3)
    assert pasted.objective == replaced.objective == copy.deepcopy(step).objective == objective
    assert repr(pasted) == repr(step) and replaced.seed == 3
    assert METHODS[name](THREAT).objective is None


@pytest.mark.parametrize("name", TAKING)
def test_d_what_is_no_objective_is_refused_in_words(name):
    for loss, error, message in (
        ("margin", ValueError, "loss must be 'ce' or a fastadv.Objective; got 'margin'"),
        (F.cross_entropy, TypeError, r"wrap it, fastadv.Objective\(function\)"),
        (None, TypeError, "loss must be 'ce' or a fastadv.Objective; got None"),
    ):
        with pytest.raises(error, match=message):
            METHODS[name](THREAT, loss=loss)
    with pytest.raises(ValueError, match=r"label_smoothing=0.1 belongs to loss='ce'; got .*soft"):
        METHODS[name](THREAT, loss=objectives.binary(), label_smoothing=0.1)


@pytest.mark.parametrize("name", ["TRADES", "MART", "YOPO"])
def test_d_methods_whose_loss_is_their_own_take_none(name):
    with pytest.raises(TypeError, match="unexpected keyword argument 'loss'"):
        METHODS[name](THREAT, loss=objectives.binary())


@pytest.mark.parametrize("name", TAKING)
def test_d_batches_and_losses_that_do_not_fit_are_named(name):
    ((x, y),) = batches(1)
    net = conv_net()
    for loss, labels, error, message in (
        (objectives.binary(), y[:3], ValueError, r"y must have a row a sample, \(16, ...\); got"),
        (objectives.binary(), [0, 1], TypeError, r"y must be a tensor .*objectives.binary\(\)"),
        (fastadv.Objective(F.cross_entropy), y, ValueError, r"one value a sample, \(16,\); got"),
    ):
        with pytest.raises(error, match=message):
            for value in METHODS[name](THREAT, loss=loss)(net, x, labels):
                value.backward()
    if name != "FreeAT":
        flat = fastadv.Objective(lambda z, y: z.detach().sum(1))
        with pytest.raises(ValueError, match="has no gradient: it is detached"):
            METHODS[name](THREAT, loss=flat).loss(net, x, y)
    with pytest.raises(ValueError, match=r"must return a row a sample, \(16, ...\)"):
        next(
            iter(METHODS[name](THREAT, loss=objectives.binary())(lambda x: net(x).sum(), x, y > 2))
        )


def test_d_a_sentinel_refuses_what_has_no_accuracy():
    ((x, y),) = batches(1, size=32)
    net = conv_net()
    sentinel = training.Sentinel(THREAT, x, y, every=1, floor=0.1)
    step = training.FastAT(THREAT, loss=objectives.weighted((1.0, 2.0, 1.0, 1.0, 1.0)))
    for call in (sentinel.watch, sentinel.finish):
        with pytest.raises(ValueError, match="compares accuracies of class labels.*weighted"):
            call(step, net, sgd(net))
