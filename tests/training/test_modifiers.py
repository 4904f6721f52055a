"""Weight perturbation, gradient alignment and mixing against formulas, and their order."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from training_problems import (
    METHODS,
    THREAT,
    batches,
    conv_net,
    gradients,
)

import fastadv
from fastadv import training
from fastadv.training import AWP, CleanMixing, GradAlign


def _crafted(step, net, x, y):
    """The adversarial batch that the next loss of `step` trains on; the step is not moved."""
    return copy.deepcopy(step).craft(copy.deepcopy(net), x, y)


def _proxy_perturbation(net, loss_of, gamma):
    """The authors' procedure: a proxy takes one SGD step up the loss, and each weight of the model
    moves along the proxy's difference, scaled to gamma times the weight's own norm."""
    proxy = copy.deepcopy(net).train()
    optimizer = torch.optim.SGD(proxy.parameters(), lr=0.01)
    optimizer.zero_grad()
    (-loss_of(proxy)).backward()
    optimizer.step()
    moves = {}
    for (name, old), new in zip(net.state_dict().items(), proxy.state_dict().values(), strict=True):
        if old.ndim > 1 and "weight" in name:
            difference = new - old
            moves[name] = gamma * old.norm() / (difference.norm() + 1e-20) * difference
    return moves


@pytest.mark.parametrize("gamma", [0.01, 0.1])
@pytest.mark.parametrize("method", ["PGDAT", "TRADES"])
@pytest.mark.parametrize("bn", [False, True], ids=["plain", "batchnorm"])
def test_awp_hands_over_the_gradient_of_the_authors_proxy_procedure(method, gamma, bn):
    ((x, y),) = batches(1, dtype=torch.float64)
    net = conv_net(bn=bn, dtype=torch.float64)
    plain = METHODS[method](THREAT)
    x_adv = _crafted(plain, net, x, y).x_adv

    def loss_of(model):
        if method == "PGDAT":
            return F.cross_entropy(model(x_adv), y)
        clean, adversarial = model(x), model(x_adv)
        p, log_q = clean.softmax(1), adversarial.log_softmax(1)
        divergence = (p * (p.log() - log_q)).sum(1).mean()
        return F.cross_entropy(clean, y) + 6.0 * divergence

    theirs = copy.deepcopy(net)
    moves = _proxy_perturbation(theirs, loss_of, gamma)
    with torch.no_grad():
        for name, move in moves.items():
            theirs.get_parameter(name).add_(move)
    expected_loss = loss_of(theirs)
    expected = gradients(theirs, expected_loss)

    before = {name: value.clone() for name, value in net.state_dict().items()}
    loss = METHODS[method](THREAT, modifiers=[AWP(gamma)]).loss(net, x, y)
    torch.testing.assert_close(loss, expected_loss, rtol=0, atol=1e-10)
    for grad, value in zip(gradients(net, loss), expected, strict=True):
        torch.testing.assert_close(grad, value, rtol=0, atol=1e-10)
    for name, p in net.named_parameters():
        assert torch.equal(p, before[name]), name
    for mine, textbook in zip(net.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(mine, textbook, rtol=0, atol=1e-10)
    # and it is not the gradient at the unperturbed weights
    unmoved = plain.loss(copy.deepcopy(net), x, y)
    assert (unmoved - loss).abs() > 1e-4


def test_awp_leaves_frozen_weights_and_biases_where_they_are():
    ((x, y),) = batches(1, dtype=torch.float64)
    net = conv_net(dtype=torch.float64)
    net[3].weight.requires_grad_(False)
    used = []
    net[3].register_forward_pre_hook(
        lambda module, args: used.append((module.weight.detach(), module.bias.detach()))
    )
    net[0].register_forward_pre_hook(lambda module, args: used.append(module.weight.detach()))
    (loss,) = METHODS["FastAT"](THREAT, modifiers=[AWP(0.1)])(net, x, y)
    loss.backward()
    assert all(torch.equal(w, net[3].weight) and torch.equal(b, net[3].bias) for w, b in used[1::2])
    first = used[-2]
    ratio = (first - net[0].weight.detach()).norm() / net[0].weight.detach().norm()
    assert float(ratio) == pytest.approx(0.1, rel=1e-9)
    assert net[3].weight.grad is None and net[0].weight.grad is not None


def test_awp_sees_the_same_dropout_masks_twice_and_the_users_generator_once():
    ((x, y),) = batches(1)
    net = conv_net(dropout=0.5)
    step = training.FastAT(THREAT, modifiers=[AWP(0.01)])
    torch.manual_seed(0)
    step.loss(net, x, y)
    after = torch.get_rng_state()
    torch.manual_seed(0)
    net(x)
    assert torch.equal(torch.get_rng_state(), after)


def test_grad_align_is_one_minus_the_mean_cosine_of_the_two_input_gradients():
    ((x, y),) = batches(1, dtype=torch.float64)
    net = conv_net(dtype=torch.float64)
    plain, step = (
        training.FastAT(THREAT, seed=5),
        training.FastAT(THREAT, seed=5, modifiers=[GradAlign(0.3)]),
    )
    near = fastadv.ops.noise.start.random_start(x, eps=0.1, seed=6, bounds=None)
    assert 0.09 < (near - x).abs().max() <= 0.1

    def gradient(at):
        leaf = at.clone().requires_grad_()
        loss = F.cross_entropy(net(leaf), y, reduction="none").sum()
        return torch.autograd.grad(loss, leaf, create_graph=True)[0].flatten(1)

    here, there = gradient(x), gradient(near)
    cosine = (here * there).sum(1) / (here.norm(dim=1) * there.norm(dim=1))
    expected = plain.loss(net, x, y) + 0.3 * (1 - cosine).mean()
    loss = step.loss(net, x, y)
    assert float((1 - cosine).detach().mean()) > 1e-3
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-10)
    for grad, value in zip(gradients(net, loss), gradients(net, expected), strict=True):
        torch.testing.assert_close(grad, value, rtol=0, atol=1e-10)


def test_grad_align_is_finite_where_no_sample_has_a_gradient():
    """A sample without a gradient (a saturated one) must not make the penalty NaN."""
    ((x, y),) = batches(1)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    with torch.no_grad():
        net[1].weight.zero_()
    loss = training.FastAT(THREAT, modifiers=[GradAlign(1.0)]).loss(net, x, y)
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in net.parameters())


def test_grad_align_moves_no_running_statistics():
    ((x, y),) = batches(1)
    plain, aligned = conv_net(bn=True), conv_net(bn=True)
    training.FastAT(THREAT).loss(plain, x, y)
    training.FastAT(THREAT, modifiers=[GradAlign()]).loss(aligned, x, y)
    for a, b in zip(plain.buffers(), aligned.buffers(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_clean_mixing_weighs_the_clean_loss(weight):
    ((x, y),) = batches(1, dtype=torch.float64)
    net = conv_net(dtype=torch.float64)
    adversarial = training.FastAT(THREAT).loss(net, x, y)
    clean = F.cross_entropy(net(x), y)
    mixed = training.FastAT(THREAT, modifiers=[CleanMixing(weight)]).loss(net, x, y)
    expected = (1 - weight) * adversarial + weight * clean
    torch.testing.assert_close(mixed, expected, rtol=0, atol=1e-12)
    assert (adversarial - clean).abs() > 1e-3


def test_the_first_modifier_is_the_innermost():
    calls = []

    def named(name):
        def modifier(objective, model, batch):
            calls.append(f"{name} in")
            loss = objective(model, batch)
            calls.append(f"{name} out")
            return loss * 2 if name == "doubles" else loss + 1

        return modifier

    ((x, y),) = batches(1)
    net = conv_net()
    plain = training.FastAT(THREAT).loss(net, x, y)
    both = [named("doubles"), named("adds")]
    loss = training.FastAT(THREAT, modifiers=both).loss(net, x, y)
    assert calls == ["adds in", "doubles in", "doubles out", "adds out"]
    torch.testing.assert_close(loss, 2 * plain + 1)
    other = training.FastAT(THREAT, modifiers=both[::-1]).loss(net, x, y)
    torch.testing.assert_close(other, 2 * (plain + 1))


@pytest.mark.parametrize("outer", ["awp", "mixing"])
def test_awp_perturbs_for_what_it_encloses_only(outer):
    ((x, y),) = batches(1, dtype=torch.float64)
    net = conv_net(dtype=torch.float64)
    x_adv = _crafted(training.FastAT(THREAT), net, x, y).x_adv

    def mixed(model):
        return (F.cross_entropy(model(x_adv), y) + F.cross_entropy(model(x), y)) / 2

    def adversarial(model):
        return F.cross_entropy(model(x_adv), y)

    moved = copy.deepcopy(net)
    moves = _proxy_perturbation(net, mixed if outer == "awp" else adversarial, 0.05)
    with torch.no_grad():
        for name, move in moves.items():
            moved.get_parameter(name).add_(move)
    if outer == "awp":
        modifiers, expected = [CleanMixing(0.5), AWP(0.05)], mixed(moved)
    else:
        modifiers = [AWP(0.05), CleanMixing(0.5)]
        expected = (adversarial(moved) + F.cross_entropy(net(x), y)) / 2
    loss = training.FastAT(THREAT, modifiers=modifiers).loss(net, x, y)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("modifiers", [[GradAlign(), AWP()], [AWP(), GradAlign()]], ids=str)
def test_awp_and_grad_align_compose(modifiers):
    ((x, y),) = batches(1)
    net = conv_net(bn=True)
    before = [b.clone() for b in net.buffers()]
    loss = training.FastAT(THREAT, modifiers=modifiers).loss(net, x, y)
    loss.backward()
    assert loss.isfinite() and all(p.grad is not None for p in net.parameters())
    once = conv_net(bn=True)
    training.FastAT(THREAT).loss(once, x, y)
    # the running statistics saw one batch: num_batches_tracked says so
    assert [int(b) for b in net.buffers() if b.ndim == 0] == [1, 1]
    assert not torch.equal(before[0], next(net.buffers()))


@pytest.mark.parametrize("name", ["FastAT", "PGDAT", "TRADES", "MART", "FreeAT", "YOPO"])
def test_label_smoothing_is_of_the_training_loss_and_not_of_the_craft(name):
    ((x, y),) = batches(1)
    net = conv_net()
    if name in ("FreeAT", "YOPO"):
        settings = {"FreeAT": {"replays": 1}, "YOPO": {"outer": 1}}[name]
        loss = next(iter(METHODS[name](THREAT, label_smoothing=0.2, **settings)(net, x, y)))
        seen = []
        net.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().clone()))
        next(iter(METHODS[name](THREAT, **settings)(net, x, y)))
        torch.testing.assert_close(loss, F.cross_entropy(net(seen[0]), y, label_smoothing=0.2))
        return
    plain, smooth = METHODS[name](THREAT), METHODS[name](THREAT, label_smoothing=0.2)
    x_adv = plain.craft(net, x, y).x_adv
    assert torch.equal(x_adv, smooth.craft(net, x, y).x_adv)
    at = x if name == "TRADES" else x_adv
    change = F.cross_entropy(net(at), y, label_smoothing=0.2) - F.cross_entropy(net(at), y)
    assert change.abs() > 1e-4
    torch.testing.assert_close(smooth.loss(net, x, y) - plain.loss(net, x, y), change)


def test_free_replays_are_modified_too():
    ((x, y),) = batches(1)
    net, delta = conv_net(), torch.full_like(x, 0.01)
    step = training.FreeAT(THREAT, replays=1, modifiers=[training.CleanMixing(0.3)])
    step.load_state_dict({"method": "FreeAT", "batches": 0, "delta": delta})
    (loss,) = _backwarded(step(net, x, y))
    expected = 0.7 * F.cross_entropy(net(x + delta), y) + 0.3 * F.cross_entropy(net(x), y)
    torch.testing.assert_close(loss, expected)
    assert not torch.equal(step.delta, delta)  # the gradient of the mixture moved it


def test_free_replays_take_the_gradient_at_perturbed_weights():
    ((x, y),) = batches(1)
    net = conv_net()
    (loss,) = _backwarded(
        training.FreeAT(THREAT, replays=1, modifiers=[training.AWP(0.05)])(net, x, y)
    )
    grads = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    objective = training.weight_loss.cross_entropy
    crafted = training.Crafted(x, x, y, 0.1, torch.arange(len(x)), 0, 0, THREAT)
    training.AWP(0.05)(objective, training.weight_loss.Reduced.of(net), crafted).backward()
    for mine, theirs in zip(grads, net.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs.grad)


def _backwarded(losses):
    values = []
    for loss in losses:
        loss.backward()
        values.append(loss.detach())
    return values
