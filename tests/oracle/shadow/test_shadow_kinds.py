"""Copies of models of any kind: wrapped, methods, with odd tensors, or none at all."""

import threading

import pytest
import torch
from shadow_problems import Head, conv_bn, images, lively, relative, searching
from torch import nn

from fastadv.wrappers import Normalized


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
