"""The copy: nothing of the user's model changes, and everything of it is followed."""

import copy
import gc
import threading
import weakref
from dataclasses import replace

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
    preact,
    relative,
    searching,
    trace,
    wide,
)
from torch import nn
from toy_models import Counting

from fastadv.wrappers import Normalized

_WAYS = [
    {"precision": "bf16"},
    {"precision": "fp16"},
    {"channels_last": True},
    {"fold_batchnorm": True},
    {"compile": "aot_eager"},
    {"precision": "bf16", "channels_last": True, "fold_batchnorm": True, "compile": "aot_eager"},
]


def test_nothing_asked_costs_nothing():
    model, x = Counting(conv_bn()), images()
    with searching(model, x) as search:
        assert model.calls == 1  # for the logits that the caller has
        assert search.is_exact and search.model is model is search.own
        assert search.scale == 1.0 and search.notes == ()
        assert torch.equal(search.forward(x), model(x))
        search.refresh()


def test_a_normalized_model_is_one_still():
    model, x = preact(), images()
    for asked in ({}, *_WAYS):
        with searching(model, x, **asked) as search:
            assert type(search.model) is Normalized
            normalised = search.model.normalize(x)
            assert torch.equal(normalised, model.normalize(x))
            inner = search.forward_inner(normalised)
            torch.testing.assert_close(inner, search.forward(x))
            torch.testing.assert_close(inner, model(x), rtol=0.05, atol=0.05)
    with searching(conv_bn(), x) as search, pytest.raises(TypeError, match="needs a Normalized"):
        search.forward_inner(x)


def test_hooks_of_a_normalized_model_run():
    model, x = preact(), images()
    model.register_forward_hook(lambda module, args, out: out * 3)
    for asked in ({}, *_WAYS[:4], _WAYS[-1]):  # compiled once
        with searching(model, x, **asked) as search:
            torch.testing.assert_close(search.forward(x), model(x), rtol=0.05, atol=0.15)
            with pytest.raises(TypeError, match="without hooks"):
                search.forward_inner(x)


def _trained(model):
    """As in the middle of training: train mode, gradients, a frozen weight, a hook."""
    model.train()
    model[1].eval()
    model[0].bias.requires_grad_(False)
    model[0].weight.grad = torch.full_like(model[0].weight, 0.25)
    model[3].register_forward_hook(lambda module, args, out: None)
    return model


@pytest.mark.parametrize("asked", _WAYS, ids=str)
def test_the_users_model_is_bit_for_bit_as_it_was(asked):
    model, x, y = _trained(conv_bn()), images(), labels(images())
    before, state = trace(model), torch.get_rng_state()
    with searching(model, x, **asked) as search:
        input_gradient(search.forward, x, y)
        theirs = {id(p) for p in model.parameters()}
        ours = list(search.model.parameters())
        assert not theirs & {id(p) for p in ours}
        assert not any(p.requires_grad for p in ours)
    assert {True, False} == set(before["requires_grad"]) == set(before["training"])
    # the search runs after the flags are restored, too, and asks for no weight gradient
    with torch.enable_grad():
        loss = search.forward(x.clone().requires_grad_()).sum()
    loss.backward()
    assert trace(model) == before
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("asked", [{"precision": "bf16"}, {"fold_batchnorm": True}], ids=str)
@pytest.mark.parametrize("call", [1, 2, 3])
@pytest.mark.parametrize(
    "error",
    [KeyboardInterrupt(), torch.OutOfMemoryError(), RuntimeError("out of memory")],
    ids=repr,
)
def test_so_it_is_after_an_exception(asked, call, error):
    calls = []

    class Failing(nn.Identity):
        def forward(self, x):
            calls.append(x)
            if len(calls) > call:
                raise error
            return x

    model, x = conv_bn(), images()
    model.insert(6, Failing())
    model.train()
    before = trace(model)
    with pytest.raises(type(error)), searching(model, x, **asked):
        pass
    assert trace(model) == before and len(calls) == call + 1


def test_the_generators_are_left_as_they_were():
    class Noisy(nn.Linear):
        def forward(self, x):
            return super().forward(x.flatten(1) + 0.01 * torch.rand(192))

    model, x = Noisy(192, 5), images()
    states = []
    for asked in ({}, *_WAYS):
        if "fold_batchnorm" not in asked:
            with searching(model, x, **asked):
                states.append(torch.get_rng_state())
    assert all(torch.equal(state, states[0]) for state in states)


def test_what_is_not_changed_shares_its_memory():
    model, x = conv_bn(), images()
    with searching(model, x, precision="bf16") as search:
        shared = {
            name
            for (name, ours), own in zip(
                search.model.state_dict().items(), model.state_dict().values(), strict=True
            )
            if ours.data_ptr() == own.data_ptr()
        }
    cast = {f"{layer}.{kind}" for layer in (0, 3) for kind in ("weight", "bias")}
    assert set(model.state_dict()) - shared == cast


def test_memory_that_the_user_exchanges_is_followed():
    model, x = conv_bn(), images()
    for asked in ({"channels_last": True}, {"fold_batchnorm": True}, {"precision": "bf16"}):
        with searching(model, x, **asked) as search:
            swapped = [*model.parameters(), model[1].running_mean]
            kept = [p.data for p in swapped]  # as one who swaps averaged weights in does
            values = [p.clone() for p in kept]
            for p in swapped:
                p.data = p.data * 1.5
            search.refresh()
            assert relative(search.forward(x), model(x).double()) < 0.03
            for p in swapped:
                p.mul_(0.9)
            search.refresh()
            assert relative(search.forward(x), model(x).double()) < 0.03
            assert all(torch.equal(a, b) for a, b in zip(kept, values, strict=True))


def test_refresh_of_shared_memory_has_nothing_to_do():
    model, x = conv_bn(), images()
    model.double()
    with searching(model, x.double(), compile="aot_eager") as search:
        assert search.replica is not None
        assert not any(pair.is_copied for pair in search.replica.pairs)
        model[0].weight.mul_(2)
        torch.testing.assert_close(search.forward(x.double()), model(x.double()))
        before = [p._version for p in model.parameters()]
        search.refresh()
        assert [p._version for p in model.parameters()] == before


def test_wrappers_are_taken_off():
    net, x = conv_bn(), images()
    with searching(net, x, fold_batchnorm=True) as search:
        expected = search.forward(x)
    wrapped = {
        "parallel": nn.DataParallel(net),
        "compiled": torch.compile(net, backend="eager"),
        "both": nn.DataParallel(torch.compile(net, backend="eager")),
        "inside": nn.Sequential(nn.Identity(), nn.DataParallel(net)),
        "normalized": Normalized(torch.compile(net, backend="eager"), (0.0,) * 3, (1.0,) * 3),
    }
    for name, model in wrapped.items():
        with searching(model.eval(), x, fold_batchnorm=True) as search:
            assert torch.equal(search.forward(x), expected), name
            kinds = {type(m).__name__ for m in search.model.modules()}
            assert not kinds & {"DataParallel", "OptimizedModule"}, name


def test_the_method_of_a_module_is_that_of_its_copy():
    class Owner(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = conv_bn()

        def predict(self, x):
            return self.net(x) * 2

    owner, x = Owner(), images()
    with searching(owner.predict, x, fold_batchnorm=True, channels_last=True) as search:
        assert search.model.__self__ is not owner
        torch.testing.assert_close(search.forward(x), owner.predict(x))


class _Locked(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.lock = conv_bn(), threading.Lock()

    def forward(self, x):
        return self.net(x)


class _Anew(nn.Linear):
    def __deepcopy__(self, memo):
        return nn.Linear(self.in_features, self.out_features)


_UNCOPYABLE = {
    "function": (lambda: lambda x: torch.tanh(x).flatten(1)[:, :5], "it is a function, not"),
    "lock": (_Locked, "copying it failed with TypeError: cannot pickle '_thread.lock'"),
    "closure": (
        lambda: (lambda net: Normalized(lambda x: net(x), (0.5,) * 3, (0.3,) * 3))(conv_bn()),
        "reaches its weights through a function",
    ),
    "anew": (lambda: nn.Sequential(nn.Flatten(), _Anew(192, 5)), "makes parameters anew"),
}


@pytest.mark.parametrize("name", ["fold_batchnorm", "channels_last"])
@pytest.mark.parametrize("kind", _UNCOPYABLE)
def test_what_needs_a_copy_says_why_there_is_none(kind, name):
    make, reason = _UNCOPYABLE[kind]
    model, x = make(), images()
    match = f"{name}=True needs a copy of the model, but .*{reason}.*leave it out"
    with pytest.raises(ValueError, match=match), searching(model, x, **{name: True}):
        pass


@pytest.mark.parametrize("kind", _UNCOPYABLE)
def test_half_precision_does_without_a_copy(kind):
    model, x = _UNCOPYABLE[kind][0](), images()
    with searching(model, x, precision="bf16") as search:
        assert search.model is model and not search.is_exact and search.notes == ()
        torch.testing.assert_close(search.forward(x), model(x), rtol=0.05, atol=0.05)


class _Odd(nn.Module):
    """Tied weights, tensors that are no buffers, a result of autograd as an attribute."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3)
        self.second.weight = self.first.weight
        self.head = Head(3)
        self.plain = torch.tensor(2.0)
        self.listed = [nn.Parameter(torch.full((3, 1, 1), 0.5)), {"shift": torch.tensor(0.25)}]
        self.derived = self.listed[0] * 2

    def forward(self, x):
        hidden = torch.tanh(self.second(torch.tanh(self.first(x))) * self.plain)
        return self.head(hidden * self.listed[0] * self.derived + self.listed[1]["shift"])


def test_tied_weights_and_tensors_outside_the_state_are_followed():
    model, x = lively(_Odd()), images()
    for asked in ({"channels_last": True}, {"precision": "bf16"}):
        with searching(model, x, **asked) as search:
            assert search.model.first.weight is search.model.second.weight
            model.plain.mul_(3)
            model.first.weight.mul_(2)
            model.listed[0].data.mul_(1.5)
            search.refresh()
            assert relative(search.forward(x), model(x).double()) < 0.03
            with torch.enable_grad():
                logits = search.forward(x)
            assert not logits.requires_grad


_LAYOUTS = {
    "conv_bn": (conv_bn, images()),
    "preact": (preact, images()),
    "wide": (wide, images()),
    "fast_cifar": (fast_cifar, images()),
    "functional": (lambda: lively(Functional()), images()),
}


@pytest.mark.parametrize("given", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("name", _LAYOUTS)
def test_channels_last_computes_the_same(name, given):
    make, x = _LAYOUTS[name]
    model, x, y = make(), x.contiguous(memory_format=given), labels(x)
    seen = []
    logits64, grad64 = in_float64(model, x, y)
    with searching(model, x, channels_last=True) as search:
        weights = [p for p in search.model.parameters() if p.ndim == 4]
        assert weights and all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)
        assert not search.is_exact and search.notes == ()

        def spied(function):
            def call(x, *args, **kwargs):
                seen.append(x.is_contiguous(memory_format=torch.channels_last))
                return function(x, *args, **kwargs)

            return call

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(F, "conv2d", spied(F.conv2d))
            logits, grad = input_gradient(search.forward, x, y)
    assert seen and all(seen)
    assert relative(logits, logits64) < 1e-5 and relative(grad, grad64) < 1e-5


def test_channels_last_leaves_samples_of_other_ranks_alone():
    model = lively(nn.Sequential(nn.Linear(12, 5)))
    x = torch.rand(6, 12)
    with searching(model, x, channels_last=True) as search:
        assert torch.equal(search.forward(x), model(x))


def test_a_model_that_needs_the_plain_layout_keeps_it_with_a_note():
    class Viewing(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.linear = nn.Conv2d(3, 4, 3), nn.Linear(144, 5)

        def forward(self, x):
            return self.linear(self.conv(x).view(len(x), -1))

    model, x = lively(Viewing()), images()
    with searching(model, x, channels_last=True) as search:
        assert search.is_exact and torch.equal(search.forward(x), model(x))
    (note,) = search.notes
    assert note.startswith("channels_last=True was left out: it failed with RuntimeError: view")
    with searching(model, x, channels_last=True, precision="bf16") as search:
        assert search.precision == "bf16" and not search.channels_last and len(search.notes) == 1


def test_a_copy_that_answers_otherwise_is_not_used():
    """A hook that writes where the copy does not look: stale features."""

    class Tapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.taps = conv_bn(), []
            self.net[2].register_forward_hook(lambda *args: self.taps.append(args[2]))

        def forward(self, x):
            self.taps.clear()
            self.taps.append(torch.zeros(()))
            self.net(x)
            return self.taps[-1].mean((2, 3))[:, :5] if self.taps[-1].ndim else self.net(x)

    model, x = Tapped().eval(), images()
    for asked in ({"channels_last": True}, {"precision": "bf16"}):
        with searching(model, x, **asked) as search:
            assert search.is_exact and torch.equal(search.forward(x), model(x))
        assert "was left out" in search.notes[0]


def test_a_search_model_survives_what_it_was_made_from():
    model, x = conv_bn(), images()
    with searching(model, x, precision="bf16", fold_batchnorm=True) as search:
        expected = search.forward(x)
    twin, alive = copy.deepcopy(model), weakref.ref(model)
    search = replace(search, own=search.model)
    del model
    gc.collect()
    assert alive() is None  # what is kept beside a model does not keep it
    assert torch.equal(search.forward(x).detach(), expected)
    search.refresh()
    assert torch.equal(search.forward(x).detach(), expected)
    with searching(twin, x, precision="bf16", fold_batchnorm=True) as other:
        assert torch.equal(other.forward(x), expected)


def test_first_batches_of_any_size_are_cut():
    model = Counting(conv_bn())
    x = images(100)
    with searching(model, x, precision="bf16") as search:
        assert model.batches == [100]  # the caller's; a copy has its own counts
        assert isinstance(search.model, Counting) and search.model is not model
        assert search.model.batches == [100, 2, 2, 64]  # the first is copied with the list
