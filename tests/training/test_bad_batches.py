"""Bad batches, models and starts: each is named, and nothing is changed."""

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
    sgd,
    train_batch,
)

import fastadv
from fastadv import training
from fastadv.training import AWP, PerturbationBank

_BAD_BATCHES = {
    "x above bounds": (lambda x, y: (255 * x, y), ValueError, "x must lie in bounds"),
    "x below bounds": (lambda x, y: (x - 0.5, y), ValueError, "x must lie in bounds"),
    "uint8": (lambda x, y: ((255 * x).byte(), y), TypeError, "x must be a floating-point tensor"),
    "NaN": (lambda x, y: (x.clone().fill_(float("nan")), y), ValueError, "x has NaN"),
    "not a tensor": (lambda x, y: (x.numpy(), y), TypeError, "x must be a torch.Tensor"),
    "double": (lambda x, y: (x.double(), y), TypeError, "x is torch.float64, the model's"),
    "short y": (lambda x, y: (x, y[:-1]), ValueError, r"y must have shape \(16,\); got \(15,\)"),
    "float y": (lambda x, y: (x, y.float()), TypeError, "y must be an integer tensor"),
    "negative y": (lambda x, y: (x, y - 1), ValueError, "y must not be negative; got -1"),
    "large y": (lambda x, y: (x, y + 1), ValueError, r"y must lie in \[0, 5\), the classes of the"),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("fault", _BAD_BATCHES)
def test_a_bad_first_batch_is_named_and_the_next_is_checked_too(name, fault):
    spoil, error, message = _BAD_BATCHES[fault]
    ((x, y),) = batches(1)
    y[:2] = torch.tensor([0, 4])  # the lowest and the highest class
    net, step = conv_net(), METHODS[name](THREAT)
    for _ in range(2):
        with pytest.raises(error, match=message):
            next(iter(step(net, *spoil(x, y))))
    assert step.batches == 0
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert next(iter(step(net, x, y))).isfinite()


@pytest.mark.parametrize("name", METHODS)
def test_a_model_that_does_not_return_logits_is_named(name):
    ((x, y),) = batches(1)

    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = conv_net()

        def forward(self, x):
            return self.net(x)[:, 0]

    more = {"first_layer": "net.0"} if name == "YOPO" else {}
    with pytest.raises(
        ValueError, match=r"must return \(B, C\) logits, here \(16, C\); got \(16,\)"
    ):
        next(iter(METHODS[name](THREAT, **more)(Flat(), x, y)))
    if name != "YOPO":  # which needs a module
        with pytest.raises(ValueError, match="got tuple of .* return its logits alone: lambda"):
            next(iter(METHODS[name](THREAT)(lambda x: (x, x), x, y)))


@pytest.mark.parametrize("name", CRAFTED)
def test_a_model_without_an_input_gradient_is_named(name):
    ((x, y),) = batches(1)
    net = conv_net()
    with pytest.raises(ValueError, match="does not depend on its input .* fastadv.BPDA"):
        METHODS[name](THREAT).loss(lambda inputs: net(inputs.detach()), x, y)


def test_free_without_a_backward_is_named():
    ((x, y),) = batches(1)
    losses = training.FreeAT(THREAT, replays=2)(conv_net(), x, y)
    next(losses)
    with pytest.raises(RuntimeError, match=r"call loss.backward\(\) before asking for the loss of"):
        next(losses)


def test_free_names_a_model_without_an_input_gradient():
    ((x, y),) = batches(1)
    net = conv_net()
    losses = training.FreeAT(THREAT, replays=2)(lambda inputs: net(inputs.detach()), x, y)
    next(losses).backward()
    with pytest.raises(RuntimeError, match="If you did, the model's output does not depend on"):
        next(losses)


def test_free_with_another_resolution_is_named():
    ((x, y),) = batches(1)
    step = training.FreeAT(THREAT, replays=1)
    train_batch(step, conv_net(), sgd(conv_net()), x, y)
    with pytest.raises(ValueError, match=r"\(1, 8, 8\); got \(1, 4, 4\). Make a new FreeAT"):
        next(step(conv_net(), x[:, :, :4, :4], y))


def test_awp_needs_a_module():
    ((x, y),) = batches(1)
    net = conv_net()
    with pytest.raises(TypeError, match="AWP needs an nn.Module; got function"):
        training.FastAT(THREAT, modifiers=[AWP()]).loss(lambda inputs: net(inputs), x, y)


def test_sample_ids_and_starts_are_checked():
    ((x, y),) = batches(1)
    net, step = conv_net(), training.FastAT(THREAT)
    with pytest.raises(ValueError, match=r"sample_ids must have shape \(16,\); got \(3,\)"):
        step.loss(net, x, y, sample_ids=torch.arange(3))
    with pytest.raises(TypeError, match="sample_ids must be a .* integer tensor"):
        step.loss(net, x, y, sample_ids=torch.arange(16.0))
    with pytest.raises(ValueError, match=r"x_init must be a tensor like x, .*; got \(3, 1, 8, 8\)"):
        step.loss(net, x, y, x_init=x[:3])
    with pytest.raises(ValueError, match="x_init must be a tensor like x, .*float64"):
        step.loss(net, x, y, x_init=x.double())


def test_a_bank_that_does_not_fit_is_named():
    ((x, y),) = batches(1)
    net = conv_net()
    step = training.FastAT(THREAT, bank=PerturbationBank(8, SHAPE))
    with pytest.raises(ValueError, match="sample_ids must be given with a perturbation bank"):
        step.loss(net, x, y)
    for ids in (torch.arange(16), torch.arange(16) - 1):
        with pytest.raises(ValueError, match=r"sample_ids must lie in \[0, 8\), those of the bank"):
            step.loss(net, x, y, sample_ids=ids)
    step = training.FastAT(THREAT, bank=PerturbationBank(16, (3, 8, 8)))
    with pytest.raises(ValueError, match=r"x must hold samples of \(3, 8, 8\), those of the bank"):
        step.loss(net, x, y, sample_ids=torch.arange(16))


def test_inference_mode_is_refused():
    ((x, y),) = batches(1)
    with torch.inference_mode(), pytest.raises(RuntimeError, match="torch.inference_mode"):
        training.FastAT(THREAT).loss(conv_net(), x, y)


class _InPlace(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = conv_net()

    def forward(self, x):
        return self.net(x.sub_(0.5))


@pytest.mark.parametrize("name", [name for name in METHODS if name != "YOPO"])
def test_a_model_that_works_in_place_on_its_input_is_refused_and_x_is_kept(name):
    ((x, y),) = batches(1)
    before = x.clone()
    with pytest.raises(ValueError, match="modifies its input in place: make its first operation"):
        next(iter(METHODS[name](THREAT)(_InPlace(), x, y)))
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", METHODS)
def test_an_empty_batch_is_refused_at_any_time(name):
    ((x, y),) = batches(1)
    step, net = METHODS[name](THREAT), conv_net()
    for loss in step(net, x, y):
        loss.backward()
    with pytest.raises(ValueError, match="x must hold at least one sample"):
        next(iter(step(net, x[:0], y[:0])))


def test_a_bank_keeps_l_infinity_perturbations_only():
    bank = training.PerturbationBank(4, (1, 8, 8))
    with pytest.raises(ValueError, match="bank keeps L-infinity perturbations; got fastadv.L2"):
        training.PGDAT(fastadv.L2(0.5), bank=bank)


def test_a_modifier_given_as_a_class_is_named():
    with pytest.raises(TypeError, match="modifiers must be a sequence such as"):
        training.FastAT(THREAT, modifiers=[training.AWP])


def test_the_state_of_another_method_is_refused():
    state = training.PGDAT(THREAT).state_dict()
    with pytest.raises(ValueError, match="state must be of FastAT; got that of PGDAT.*rescue_step"):
        training.FastAT(THREAT).load_state_dict(state)
