"""Networks that clamp their input are trained as without the clamp, whatever the clamp's gradient
at its bounds is."""

import copy
import functools

import pytest
import torch
from clamping_problems import (
    KINDS,
    assert_same,
    assert_same_weights,
    counted_warnings,
    loses_gradient,
    make_step,
    pair_of,
    problems,
    run,
)
from training_problems import CRAFTED, METHODS, sgd, train_batch, uniform

import fastadv
from benchmarks.clamping.rules import RULES, clamp_rule
from fastadv.oracle import clamping
from fastadv.training import AWP, CleanMixing, GradAlign


@functools.cache
def _of_the_bare_network(name, normalised):
    """(the network after training, iterates, losses, warnings): it has no clamp of any kind."""
    _, bare = pair_of("normalised" if normalised else "number")
    _, *found = run(name, bare)
    return bare, *found


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", METHODS)
def test_iterates_losses_and_weights_are_those_of_the_bare_network(name, kind, rule):
    clamping, _ = pair_of(kind)
    with clamp_rule(rule):
        step, iterates, losses, warned = run(name, clamping)
    bare, expected, their_losses, unwarned = _of_the_bare_network(name, kind == "normalised")
    assert_same(iterates, expected)
    assert any(((x == 0) | (x == 1)).any() for x in iterates)
    assert torch.equal(losses, their_losses)
    assert_same_weights(clamping, bare)  # and running statistics
    assert (step._watch.inset > 0) == (len(warned) == 1) == loses_gradient(kind, rule)
    assert [w.count for w in warned] == [16] * loses_gradient(kind, rule) and not unwarned


@pytest.mark.parametrize("bn", ["batch", "eval", "train"])
@pytest.mark.parametrize("name", CRAFTED)
def test_a_craft_alone_is_that_of_the_bare_network_from_the_first_batch(name, bn):
    clamping, bare = pair_of("hardtanh")
    steps = make_step(name, clamping, bn=bn), make_step(name, bare, bn=bn)
    for x, y, more in problems(name, 2):
        with counted_warnings():
            mine = steps[0].craft(clamping, x, y, **more)
        theirs = steps[1].craft(bare, x, y, **more)
        assert torch.equal(mine.x_adv, theirs.x_adv) and not torch.equal(mine.x_adv, x)
        torch.testing.assert_close(steps[0].craft_loss, steps[1].craft_loss, rtol=1e-9, atol=0)
        for (name_, a), (_, b) in zip(
            clamping.named_buffers(), bare.named_buffers(), strict=True
        ):  # with "train" they move: by the iterates, and once for each pass that is kept
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15, msg=name_)


_MODIFIED = {
    "AWP": [AWP(0.05)],
    "gradients aligned": [GradAlign(0.5)],
    "both": [GradAlign(0.5), AWP(0.05)],
    "clean samples": [CleanMixing(0.3)],
}


@pytest.mark.parametrize("modifiers", _MODIFIED.values(), ids=_MODIFIED)
@pytest.mark.parametrize("name", ["FastAT", "PGDAT", "FreeAT"])
def test_modifiers_train_as_under_the_old_rule(name, modifiers):
    """A clamp has no gradient outside its bounds, where random starts of GradAlign may lie: so the
    bare network is no measure here."""
    net, _ = pair_of("number")
    mine, theirs = net, copy.deepcopy(net)
    with clamp_rule("new"):
        step, iterates, losses, warned = run(name, mine, modifiers=modifiers)
    with clamp_rule("old"):
        _, expected, their_losses, _ = run(name, theirs, modifiers=modifiers)
    assert_same(iterates, expected)
    torch.testing.assert_close(losses, their_losses, rtol=1e-9, atol=0)
    assert step._watch.inset > 0 and len(warned) == 1


@pytest.mark.parametrize("background", ["black", "white"])
@pytest.mark.parametrize("name", METHODS)
def test_own_starts_train_as_under_the_old_rule(name, background):
    """Outside the bounds, where most of them begin, a clamp has no gradient under either."""
    net, _ = pair_of("number")
    settings = {"clamp_start": False} if name in ("FastAT", "NFGSM", "PGDAT") else {}
    runs = []
    for rule, model in (("new", net), ("old", copy.deepcopy(net))):
        step, optimizer = make_step(name, model, **settings), sgd(model)
        with clamp_rule(rule), counted_warnings() as warned:
            for x, y, _ in problems(name, 3):
                x = x if background == "black" else 1 - x
                train_batch(step, model, optimizer, x, y)
        runs.append((step.threat.seen, len(warned)))
    (iterates, warned), (expected, unwarned) = runs
    assert_same(iterates, expected)
    # of one step, none of whose starts lies at a bound, nothing is lost
    alone = name in ("FastAT", "NFGSM")
    assert (warned, unwarned) == (not alone, 0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["TRADES", "MART", "YOPO"])
def test_starts_that_come_near_the_bounds_by_chance_hide_no_clamp(name, dtype):
    net, _ = pair_of("hardtanh", dtype=dtype)
    x, y, _ = problems(name, 1)[0]
    x = x.to(dtype)
    start = (x.double() + uniform(x.double(), 0.001, seed=0)).to(dtype)
    ends = (x == 0).nonzero()
    for i, at in enumerate(ends[: len(ends) // 4].tolist()):
        start[tuple(at)] = 0.0 if i % 8 == 0 else 5e-7
    step = make_step(name, net)
    with counted_warnings() as warned:
        for loss in step(net, x, y, x_init=start):
            loss.backward()
    assert step._watch.inset > 0 and len(warned) == 1


def test_aligned_gradients_are_looked_at_where_the_craft_shows_nothing():
    """A craft of one step from a start that is not clamped meets no entry at a bound."""
    net, _ = pair_of("number")
    modifiers = [GradAlign(0.5)]
    losses, gradients, silent = [], [], []
    for rule in ("new", "old"):
        step = make_step("FastAT", net, clamp_start=False, step_size=0.0, modifiers=modifiers)
        ((x, y, _),) = problems("FastAT", 1)
        with clamp_rule(rule), counted_warnings() as warned:
            loss = step.loss(net, x, y)
            gradients.append(torch.autograd.grad(loss, list(net.parameters())))
        losses.append(loss.detach())
        assert len(warned) == (rule == "new") == (step._watch.inset > 0)
    torch.testing.assert_close(*losses, rtol=1e-10, atol=0)
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-10)
    with clamp_rule("new"):  # the loss tells: with the gradients that are lost it is another
        step = make_step("FastAT", net, clamp_start=False, step_size=0.0, modifiers=modifiers)
        step._watch.close()
        silent = step.loss(net, x, y).detach()
    assert abs(silent - losses[1]) > 1e-3


@pytest.mark.parametrize("threat", [fastadv.L2(0.5), fastadv.L1(3.0)], ids=repr)
@pytest.mark.parametrize("name", ["PGDAT", "MART", "FreeAT"])
def test_other_norms_train_as_on_the_bare_network(name, threat):
    nets, weights = pair_of("hardtanh"), []
    for net in nets:
        step = METHODS[name](threat)
        optimizer = sgd(net)
        with counted_warnings():
            for x, y, more in problems(name, 3):
                train_batch(step, net, optimizer, x, y, **more)
        weights.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    torch.testing.assert_close(*weights, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("name", METHODS)
def test_in_lower_precision_the_loss_of_gradients_is_noticed_too(name, precision):
    """In eval mode, in which the second look is made, this network overflows float16."""
    clamping, _ = pair_of("hardtanh", dtype=torch.float32)
    with torch.no_grad():
        clamping.net[0].weight.mul_(1e3)
        clamping.net[3].weight.mul_(1e3)
    ((x, y, more),) = problems(name, 1)
    more = {key: value.float() for key, value in more.items()}
    policy = {"bn": "batch"} if name in CRAFTED else {}
    step = make_step(name, clamping, precision=precision, **policy)
    with counted_warnings() as warned:
        for loss in step(clamping, x.float(), y, **more):
            loss.backward()
    assert len(warned) == 1 and step._watch.inset > 0


def test_the_pass_that_free_training_adds_loses_nothing_in_float16():
    """There the gradient of a mean, which this is, would be rounded to zero."""
    iterates = []
    for precision in ("fp16", "fp32"):
        net, _ = pair_of("hardtanh", dtype=torch.float32)
        with torch.no_grad():
            net.net[7].weight.mul_(1e-5)
        x, y, _ = problems("FreeAT", 1)[0]
        step = make_step("FreeAT", net, precision=precision, replays=1)
        step._watch.inset = 1e-6
        for loss in step(net, x.float(), y):
            loss.backward()
        iterates.append(step.threat.seen[0])
    # 1.5 %: signs of the smallest; without the scale 40 %
    assert (iterates[0] != iterates[1]).double().mean() < 0.05


@pytest.mark.parametrize("name", ["PGDAT", "MART", "YOPO", "FreeAT"])
def test_what_the_first_gradient_does_not_show_a_later_one_of_the_batch_does(name):
    """No pixel lies at a bound, but the iterates do."""
    runs = []
    for net in pair_of("hardtanh"):
        step = make_step(name, net, **({"random_start": False} if name == "PGDAT" else {}))
        optimizer, losses = sgd(net), []
        with counted_warnings() as warned:
            for x, y, more in problems(name, 2):
                x = x * 0.98 + 0.01
                more = {key: x for key in more}
                losses += train_batch(step, net, optimizer, x, y, **more)
        runs.append((step.threat.seen, losses, len(warned)))
    (iterates, losses, warned), (expected, their_losses, unwarned) = runs
    assert_same(iterates, expected)
    assert_same(losses, their_losses)
    assert (warned, unwarned) == (1, 0)


def test_free_training_mends_what_a_backward_of_the_user_shows_from_the_next_replay_on(monkeypatch):
    """Where its own look told nothing."""
    answers = iter([False])
    evidence = clamping.evidence

    def first_silent(grad, x, bounds):
        told = next(answers, True)
        return clamping.Evidence(*(rows & told for rows in evidence(grad, x, bounds)))

    monkeypatch.setattr(clamping, "evidence", first_silent)
    net, _ = pair_of("hardtanh")
    x, y, _ = problems("FreeAT", 1)[0]
    step, found = make_step("FreeAT", net), []
    with counted_warnings() as warned:
        for loss in step(net, x, y):
            found.append(step._watch.inset)
            loss.backward()
    assert found[0] is None and found[1] == found[2] > 0 and len(warned) == 1
    first, second, _ = step.threat.seen
    at_bound = (x == 0) | (x == 1)
    assert torch.equal(first[at_bound], x[at_bound]) and not torch.equal(second, first)
    assert ((second != x) & at_bound).any()
