"""The copy: nothing of the user's model changes, and everything of it is followed."""

import copy
import gc
import weakref
from dataclasses import replace

import pytest
import torch
from shadow_problems import (
    conv_bn,
    images,
    input_gradient,
    labels,
    normalized_conv,
    one_conv,
    relative,
    searching,
    trace,
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
    model, x = normalized_conv(), images()
    for asked in ({}, *_WAYS):
        with searching(model, x, **asked) as search:
            assert type(search.model) is Normalized
            normalised = search.model.normalize(x)
            assert torch.equal(normalised, model.normalize(x))
            inner = search.forward_inner(normalised)
            torch.testing.assert_close(inner, search.forward(x))
            torch.testing.assert_close(inner, model(x), rtol=0.05, atol=0.05)
    with searching(one_conv(), x) as search, pytest.raises(TypeError, match="needs a Normalized"):
        search.forward_inner(x)


def test_hooks_of_a_normalized_model_run():
    model, x = normalized_conv(), images()
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
    model, x, y = _trained(one_conv()), images(), labels(images())
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
    model, x = one_conv(), images()
    model.double()
    with searching(model, x.double(), compile="aot_eager") as search:
        assert search.replica is not None
        assert not any(pair.is_copied for pair in search.replica.pairs)
        model[0].weight.mul_(2)
        torch.testing.assert_close(search.forward(x.double()), model(x.double()))
        before = [p._version for p in model.parameters()]
        search.refresh()
        assert [p._version for p in model.parameters()] == before


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
