"""Crafting leaves no trace: flags, gradients, buffers, random state, modes, hooks are as before."""

import contextlib
import gc
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from training_problems import (
    CRAFTED,
    METHODS,
    THREAT,
    batches,
    conv_net,
    trace_of,
    train_batch,
)


def _net():
    """Frozen weights, a layer in eval mode, gradients already there, buffers that are not 0."""
    net = conv_net(bn=True, dropout=0.3)
    net[0].bias.requires_grad_(False)
    net[4].eval()
    net[3].weight.grad = torch.full_like(net[3].weight, 0.25)
    with torch.no_grad():
        for x, _ in batches(2):
            net(x)
    return net


def _process():
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": [str(part) for part in np.random.get_state()],
        "python": random.getstate(),
        "dtype": torch.get_default_dtype(),
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": [torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")],
        "autocast_dtype": [torch.get_autocast_dtype(kind) for kind in ("cpu", "cuda")],
        "autocast_cache": torch.is_autocast_cache_enabled(),
        "anomaly": torch.is_anomaly_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
    }


_AROUND = {
    "nothing": contextlib.nullcontext,
    "no_grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
}


@pytest.mark.parametrize("around", _AROUND)
@pytest.mark.parametrize("precision", [None, "bf16", "fp32"])
@pytest.mark.parametrize("bn", ["batch", "eval"])
@pytest.mark.parametrize("name", ["FastAT", "TRADES"])
def test_a_craft_leaves_model_arguments_and_process_as_they_were(name, bn, precision, around):
    net, ((x, y),) = _net(), batches(1)
    before, x_before, y_before = trace_of(net), x.clone(), y.clone()
    with _AROUND[around]():
        process = _process()
        crafted = METHODS[name](THREAT, bn=bn, precision=precision).craft(net, x, y)
        assert _process() == process
    assert not torch.equal(crafted.x_adv, x) and not crafted.x_adv.requires_grad
    assert trace_of(net) == before
    assert torch.equal(x, x_before) and torch.equal(y, y_before) and x._version == 0
    # both kinds of everything are covered
    assert {True, False} == {flag for _, flag in before["training"]}
    assert {True, False} == {flag for _, flag in before["requires_grad"]}
    assert {True, False} == {grad is None for grad in before["grad"]}


class _Failing(nn.Module):
    """Raises in its call number `call`, counted from 0, after the layers before it ran."""

    def __init__(self, net, call, error):
        super().__init__()
        self.net, self.call, self.error, self.calls = net, call, error, 0

    def forward(self, x):
        hidden = self.net[:4](x)
        self.calls += 1
        if self.calls > self.call:
            raise self.error
        return self.net[4:](hidden)


@pytest.mark.parametrize("error", [RuntimeError("mid-craft"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("bn", ["batch", "eval"])
@pytest.mark.parametrize("call", [0, 2])
@pytest.mark.parametrize("name", ["PGDAT", "TRADES"])
def test_a_craft_that_fails_leaves_all_as_it_was(name, call, bn, error):
    model, ((x, y),) = _Failing(_net(), call, error), batches(1)
    step = METHODS[name](THREAT, bn=bn, precision="bf16")
    before, process = trace_of(model), _process()
    with pytest.raises(type(error)):
        step.loss(model, x, y)
    after = trace_of(model)
    assert _process() == process
    assert after == before
    assert step.batches == 0


def test_a_backward_that_fails_leaves_all_as_it_was():
    net, ((x, y),) = _net(), batches(1)

    def fail(grad):
        raise KeyboardInterrupt

    model = nn.Sequential(net)
    handle = net[2].register_forward_hook(
        lambda module, args, out: out.register_hook(fail) and None
    )
    before, process = trace_of(model), _process()
    with pytest.raises(KeyboardInterrupt):
        METHODS["PGDAT"](THREAT).loss(model, x, y)
    assert (trace_of(model), _process()) == (before, process)
    handle.remove()


@pytest.mark.parametrize("name", METHODS)
def test_a_whole_step_leaves_the_process_and_all_but_the_loss_graph(name):
    """Without dropout no random number is drawn, and only the training pass moves buffers."""
    net, ((x, y),) = conv_net(bn=True), batches(1)
    before, process = trace_of(net), _process()
    for loss in METHODS[name](THREAT)(net, x, y):
        assert _process() == process
        if name != "FreeAT":
            after = trace_of(net)
            assert {key: after[key] for key in after if key != "buffers"} == {
                key: before[key] for key in before if key != "buffers"
            }
        loss.backward()
    assert _process() == process


@pytest.mark.parametrize("name", CRAFTED)
def test_gradients_accumulated_so_far_are_kept(name):
    net = conv_net()
    (x, y), (x2, y2) = batches(2)
    step = METHODS[name](THREAT)
    step.loss(net, x, y).backward()
    first = [p.grad.clone() for p in net.parameters()]
    loss = step.loss(net, x2, y2)
    for p, grad in zip(net.parameters(), first, strict=True):
        assert torch.equal(p.grad, grad)
    loss.backward()
    fresh, again = conv_net(), METHODS[name](THREAT)
    again.batches = 1
    again.loss(fresh, x2, y2).backward()
    for p, q, grad in zip(net.parameters(), fresh.parameters(), first, strict=True):
        torch.testing.assert_close(p.grad, grad + q.grad)


def test_hooks_of_parameters_still_fire_after_a_craft():
    net, ((x, y),) = conv_net(), batches(1)
    seen = []
    net[0].weight.register_hook(lambda grad: seen.append("tensor"))
    net[0].weight.register_post_accumulate_grad_hook(lambda p: seen.append("accumulated"))
    step = METHODS["PGDAT"](THREAT)
    loss = step.loss(net, x, y)
    assert seen == []  # no craft pass reached the weights
    loss.backward()
    assert seen == ["tensor", "accumulated"]


def test_dropout_draws_the_same_masks_for_the_craft_and_none_from_the_global_generator():
    net, ((x, y),) = conv_net(dropout=0.5), batches(1)
    step = METHODS["PGDAT"](THREAT)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first = step.craft(net, x, y)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(8)
    assert torch.equal(step.craft(net, x, y).x_adv, first.x_adv)
    # the training pass draws from the user's generator, as without us
    torch.manual_seed(7)
    loss = step.loss(net, x, y)
    torch.manual_seed(7)
    assert torch.equal(loss, F.cross_entropy(net(first.x_adv), y))


def test_a_function_around_a_module_is_frozen_and_put_back_too():
    net, ((x, y),) = _net(), batches(1)
    before = trace_of(net)
    crafted = METHODS["PGDAT"](THREAT).craft(lambda inputs: net(inputs * 1.0), x, y)
    assert not torch.equal(crafted.x_adv, x)
    assert trace_of(net) == before


class _NoScaler(torch.amp.GradScaler):
    """A scaler that counts the losses it is given."""

    scaled = 0

    def scale(self, outputs):
        type(self).scaled += 1
        return super().scale(outputs)


@pytest.mark.parametrize("name", METHODS)
def test_a_gradient_scaler_scales_the_losses_of_the_user_and_nothing_else(name):
    net, ((x, y),) = conv_net(), batches(1)
    plain, optimizer = conv_net(), torch.optim.SGD(net.parameters(), lr=0.1)
    scaler = _NoScaler("cpu", init_scale=2.0**10)
    _NoScaler.scaled = 0
    for losses, loss in enumerate(METHODS[name](THREAT)(net, x, y), 1):
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        assert _NoScaler.scaled == losses
    assert scaler.get_scale() == 2.0**10
    train_batch(METHODS[name](THREAT), plain, torch.optim.SGD(plain.parameters(), lr=0.1), x, y)
    for p, q in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_a_yielded_loss_holds_no_context_open(name):
    """Between two losses of an iterator the user's grad mode and autocast are the user's own."""
    net, ((x, y),) = conv_net(), batches(1)
    process = _process()
    steps = METHODS[name](THREAT, precision="bf16")(net, x, y)
    loss = next(steps)
    assert _process() == process and loss.requires_grad and loss.dtype == torch.float32
    with torch.no_grad():
        assert not (net(x)).requires_grad
    del steps
    gc.collect(0)  # a whole collection takes half a second, and looks at no other object of ours
    assert _process() == process
    assert all(p.requires_grad for p in net.parameters())


def test_start_iterates_given_by_the_user_are_not_written():
    net, ((x, y),) = conv_net(), batches(1)
    x_init = (x + 0.05).requires_grad_()
    before = x_init.detach().clone()
    for name in (*CRAFTED, "YOPO"):
        METHODS[name](THREAT).loss(net, x, y, x_init=x_init).backward()
        assert torch.equal(x_init.detach(), before) and x_init.grad is None, name


@pytest.mark.parametrize("name", METHODS)
def test_a_gradient_of_x_comes_from_the_users_backward_alone(name):
    """As from F.cross_entropy(model(x), y), which the step replaces; no craft leaves one."""
    net, ((x, y),) = conv_net(), batches(1)
    x.requires_grad_()
    leaf = x.detach().requires_grad_()  # FreeAT's first input is x
    if name in CRAFTED:
        batch = METHODS[name](THREAT).craft(net, x, y)
        assert x.grad is None
        leaf = batch.x_adv.detach().requires_grad_()
    for loss in METHODS[name](THREAT)(net, x, y):
        assert x.grad is None, "before a backward"
        loss.backward()
        break
    if name == "YOPO":
        assert x.grad is None  # it hands over gradients of the weights
    elif name in ("TRADES", "MART"):
        assert x.grad.abs().max() > 0  # of the clean and of the adversarial pass
    else:
        (grad,) = torch.autograd.grad(F.cross_entropy(net(leaf), y), leaf)
        assert torch.equal(x.grad, grad)
