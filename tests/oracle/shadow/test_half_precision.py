"""bf16 and fp16: what autocast computes, from weights cast once, with exact last layers."""

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from shadow_problems import (
    Functional,
    Head,
    conv_bn,
    fast_cifar,
    images,
    in_float64,
    input_gradient,
    labels,
    lively,
    normalized_preact,
    preact,
    relative,
    searching,
    wide,
)
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import fastadv
from fastadv import models
from fastadv.oracle.shadow.search_model import search_model

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def _mnist():
    return lively(models.mnist_net(classes=5))


def _attention():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.head = nn.Linear(8, 5)

        def forward(self, x):
            return self.head(self.layer(x.flatten(2).transpose(1, 2)).mean(1))

    return lively(Net())


_NETS = {
    "conv_bn": (conv_bn, images(), 4),
    "preact": (normalized_preact, images(), 6),
    "wide": (wide, images(), 9),
    "fast_cifar": (fast_cifar, images(), 7),
    "mnist": (_mnist, images(channels=1, size=28), 6),
    "functional": (lambda: lively(Functional()), images(), 3),
    "attention": (_attention, images(channels=8, size=4), 8),
}


class _Casts(TorchDispatchMode):
    """Elements cast to half precision from each of `tensors`."""

    def __init__(self, tensors):
        super().__init__()
        self.addresses = {t.data_ptr() for t in tensors}
        self.found = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "_to_copy" in str(func):
            self.found += args[0].data_ptr() in self.addresses
        return func(*args, **(kwargs or {}))


def _cosine(a, b):
    return float(F.cosine_similarity(a.double().flatten(), b.double().flatten(), dim=0))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("name", _NETS)
def test_logits_and_gradients_are_as_exact_as_autocasts_and_no_weight_is_cast_again(
    name, precision
):
    make, x, cast = _NETS[name]
    model, y, dtype = make(), labels(x), _DTYPES[precision]
    logits64, grad64 = in_float64(model, x, y)
    scale = 1024.0 if precision == "fp16" else 1.0

    def autocast(x):
        with torch.autocast("cpu", dtype=dtype, cache_enabled=False):
            return model(x)

    theirs, their_grad = input_gradient(autocast, x, y, scale)
    with searching(model, x, precision=precision) as search:
        assert not search.is_exact and search.notes == () and search.scale == scale
        assert [p.dtype for p in search.model.parameters()].count(dtype) == cast
        own = list(search.model.parameters())
        casts = _Casts(p for p in own if p.dtype == dtype)
        with casts:
            logits, grad = input_gradient(search.forward, x, y, scale)
    assert casts.found == 0
    assert logits.dtype == grad.dtype == torch.float32
    # autocast of the model itself is the measure; roundings fall either way, hence the factor
    assert relative(logits, logits64) <= 1.5 * relative(theirs, logits64)
    assert _cosine(grad, grad64) >= 1 - 1.5 * (1 - _cosine(their_grad, grad64))
    assert _cosine(grad, grad64) > 0.99
    assert 0 < relative(logits, logits64)


def test_the_cast_is_seen_where_weights_are_not_cast_before():
    """The test above counts casts: of a plain callable, autocast casts every weight."""
    model, x = conv_bn(), images()
    with searching(lambda x: model(x), x, precision="bf16") as search, torch.no_grad():
        casts = _Casts(model.parameters())
        with casts:
            search.forward(x)
    assert casts.found == 6


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_last_linear_layer_computes_in_float32(precision):
    model, x = conv_bn(), images()
    features = {}
    with searching(model, x, precision=precision) as search:
        head = search.model[6]
        head.register_forward_pre_hook(lambda module, args: features.update(x=args[0]))
        logits = search.forward(x)
        flat = features["x"].flatten(2).mean(2)
        assert flat.dtype == _DTYPES[precision]
        expected = F.linear(flat.float(), model[6].linear.weight, model[6].linear.bias)
    assert torch.equal(logits, expected)
    assert not torch.equal(logits, logits.to(_DTYPES[precision]).float())


def test_the_whole_of_it_is_autocasts_where_there_is_no_last_linear_layer():
    """Then the shadow is bit for bit autocast of the user's model, cast weights or not."""
    model = lively(nn.Sequential(nn.Conv2d(3, 8, 3), nn.GELU(), nn.Conv2d(8, 5, 6), nn.Flatten()))
    x, y = images(), labels(images())

    def autocast(x):
        with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
            return model(x).float()

    theirs = input_gradient(autocast, x, y)
    with searching(model, x, precision="bf16") as search:
        ours = input_gradient(search.forward, x, y)
    assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])


class _Twice(nn.Module):
    """A weight that a product uses, and arithmetic too; another that a method changes in place."""

    def __init__(self):
        super().__init__()
        self.shared = nn.Parameter(torch.empty(6, 3, 3, 3))
        self.alone = nn.Parameter(torch.empty(6, 6, 1, 1))
        self.head = Head(6)

    def forward(self, x):
        hidden = F.conv2d(x, self.shared) * self.shared.sum((1, 2, 3))[:, None, None]
        return self.head(F.conv2d(torch.tanh(hidden), self.alone.detach().view_as(self.alone)))


def test_a_weight_that_arithmetic_uses_too_keeps_its_precision():
    model, x = lively(_Twice()), images()
    with searching(model, x, precision="bf16") as search:
        dtypes = {name: p.dtype for name, p in search.model.named_parameters()}
        torch.testing.assert_close(search.forward(x), model(x), rtol=0.05, atol=0.05)
    assert dtypes.pop("alone") == torch.bfloat16
    assert set(dtypes.values()) == {torch.float32}


@pytest.mark.parametrize("kind", ["function", "partial", "method", "normalized function"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_models_of_any_kind_can_be_searched_in_half_precision(kind, precision):
    net, x, y = preact(), images(), labels(images())

    class Owner(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def predict(self, x):
            return self.net(x)

    model = {
        "function": lambda x: net(x),
        "partial": functools.partial(torch.func.functional_call, net, dict(net.named_parameters())),
        "method": Owner().predict,
        "normalized function": fastadv.Normalized(lambda x: net(x), (0.5,) * 3, (0.3,) * 3),
    }[kind]
    exact, exact_grad = input_gradient(model, x, y)
    with searching(model, x, precision=precision) as search:
        logits, grad = input_gradient(search.forward, x, y, search.scale)
    assert search.precision == precision and search.notes == ()
    assert 0 < relative(logits, exact.double()) < 0.03
    assert _cosine(grad, exact_grad) > 0.99


def test_every_call_sees_x_and_the_weights_as_they_are_now():
    model, x = conv_bn(), images()
    with searching(model, x, precision="bf16") as search:
        leaf = x.requires_grad_()  # which autocast would keep, cast, until the attack is over
        with torch.enable_grad():
            first = search.forward(leaf)
        leaf.mul_(0.5)
        with torch.enable_grad():
            second = search.forward(leaf).detach()
        addresses = [p.data_ptr() for p in search.model.parameters()]
        model[6].linear.weight.mul_(2)  # in float32: shared
        model[0].weight.mul_(3)
        search.refresh()
        third = search.forward(x).detach()
        expected = model(x).detach()
        assert [p.data_ptr() for p in search.model.parameters()] == addresses
    assert not torch.equal(first, second)
    assert relative(third, expected.double()) < 0.03 < relative(second, expected.double())


def test_a_folded_half_precision_model_follows_its_weights_too():
    model, x = conv_bn(), images()
    everything = {"precision": "bf16", "fold_batchnorm": True, "channels_last": True}
    with searching(model, x, **everything) as search:
        before = [(p.data_ptr(), p.stride()) for p in search.model.parameters()]
        model.load_state_dict(lively(conv_bn(), seed=5).state_dict())
        search.refresh()
        ours = search.forward(x)
        assert [(p.data_ptr(), p.stride()) for p in search.model.parameters()] == before
    with searching(model, x, **everything) as anew:
        assert torch.equal(anew.forward(x), ours)


def test_a_batch_of_one_and_of_none():
    model = conv_bn()
    for n, is_exact in ((1, False), (0, True)):
        x = images(n)
        logits = model(images())[:n].detach()
        search = search_model(
            model,
            precision="bf16",
            channels_last=True,
            fold_batchnorm=True,
            compile=False,
            x=x,
            logits=logits,
        )
        assert search.is_exact == is_exact
        assert search.forward(x).shape == (n, 5)


def test_the_given_model_stays_in_float32():
    model, x = conv_bn(), images()
    twin = copy.deepcopy(model)
    with searching(model, x, precision="fp16"):
        assert torch.equal(model(x), twin(x))
