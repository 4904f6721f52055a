"""Folding: the same function with fewer layers, refused where it would not be."""

import pytest
import torch
from shadow_problems import (
    Head,
    conv_bn,
    fast_cifar,
    images,
    in_float64,
    input_gradient,
    labels,
    lively,
    normalized_preact,
    relative,
    searching,
    wide,
)
from torch import nn

from fastadv.oracle.shadow.watching import watch


def _norms_run(search, x):
    """How many BatchNorm layers a forward pass computes."""
    names = []
    watch(search.forward, x, lambda name, *_: names.append(name))
    return names.count("batch_norm")


def _sequence(*layers):
    return lively(nn.Sequential(*layers, Head(6)))


_NETS = {
    "no bias, groups": (lambda: conv_bn(bias=False), images(), 0),
    "bias, groups": (conv_bn, images(), 0),
    "reflect": (lambda: conv_bn(padding_mode="reflect"), images(), 0),
    "not affine": (
        lambda: _sequence(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, affine=False), nn.GELU()),
        images(),
        0,
    ),
    "transposed": (
        lambda: _sequence(
            nn.ConvTranspose2d(3, 6, 3, stride=2),
            nn.BatchNorm2d(6),
            nn.GELU(),
            nn.ConvTranspose2d(6, 6, 3, groups=2),
            nn.BatchNorm2d(6),
        ),
        images(),
        1,  # torch's fusion does not know the groups
    ),
    "1d": (
        lambda: _sequence(nn.Conv1d(3, 6, 3, bias=False), nn.BatchNorm1d(6), nn.GELU()),
        images(size=(9,)),
        0,
    ),
    "3d": (
        lambda: _sequence(nn.Conv3d(3, 6, 2), nn.BatchNorm3d(6), nn.GELU()),
        images(size=(3, 4, 5)),
        0,
    ),
    "linear": (
        lambda: lively(
            nn.Sequential(
                nn.Flatten(),
                nn.Linear(192, 20, bias=False),
                nn.BatchNorm1d(20),
                nn.ReLU(),
                nn.Linear(20, 9),
                nn.BatchNorm1d(9, affine=False),
                nn.ReLU(),
                nn.Linear(9, 5),
            )
        ),
        images(),
        0,
    ),
    "synchronised": (
        lambda: _sequence(nn.Conv2d(3, 6, 3), nn.SyncBatchNorm(6), nn.GELU()),
        images(),
        0,
    ),
    # bn1 of the first block is given the stem's output, which the skip connection takes too; bn1 of
    # the second, and the last, that of a sum
    "preact": (normalized_preact, images(), 3),
    "wide": (wide, images(), 4),
    "fast_cifar": (fast_cifar, images(), 3),  # a max-pool between
}


@pytest.mark.parametrize("name", _NETS)
def test_logits_and_input_gradients_are_the_models(name):
    make, x, left = _NETS[name]
    model, y = make(), labels(x)
    logits64, grad64 = in_float64(model, x, y)
    own_logits, own_grad = input_gradient(model, x, y)
    with searching(model, x, fold_batchnorm=True) as search:
        assert not search.is_exact and search.notes == () and search.scale == 1.0
        assert _norms_run(search, x) == left
        logits, grad = input_gradient(search.forward, x, y)
    # 4 times the fp32 model's own error, and a few roundings
    assert relative(logits, logits64) <= 4 * relative(own_logits, logits64) + 2**-21
    assert relative(grad, grad64) <= 4 * relative(own_grad, grad64) + 2**-21


class _Wired(nn.Module):
    """conv, then bn, and a rewiring of the two."""

    def __init__(self, wiring):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.other = nn.Conv2d(6, 6, 1)
        self.bn, self.later = nn.BatchNorm2d(6), nn.BatchNorm2d(6)
        self.head = Head(6)
        self.wiring = wiring

    def forward(self, x):
        return self.head(self.wiring(self, x))


def _skip(net, x):
    hidden = net.conv(x)
    return net.later(net.other(torch.relu(net.bn(hidden)))) + hidden


def _in_place(net, x):
    return net.later(net.other(net.bn(net.conv(x).mul_(2).tanh_())))


def _conv_twice(net, x):
    hidden = torch.relu(net.bn(net.conv(x)))
    return net.later(net.other(hidden)) + net.conv(x.flip(2))


def _bn_twice(net, x):
    hidden = torch.relu(net.bn(net.conv(x)))
    return net.later(net.other(net.bn(hidden)))


@pytest.mark.parametrize("wiring", [_skip, _in_place, _conv_twice, _bn_twice])
def test_a_layer_whose_output_goes_elsewhere_too_is_left_as_it_is(wiring):
    x = images()
    model, y = lively(_Wired(wiring)), labels(x)
    logits64, grad64 = in_float64(model, x, y)
    with searching(model, x, fold_batchnorm=True) as search:
        logits, grad = input_gradient(search.forward, x, y)
        runs = _norms_run(search, x)
    assert runs == (2 if wiring is _bn_twice else 1)  # `later` is folded
    assert relative(logits, logits64) < 1e-5 and relative(grad, grad64) < 1e-5


def _view(net, x):
    hidden = net.conv(x)
    transposed = hidden.mT  # a view, whose use is not seen
    return torch.relu(net.bn(hidden)) + torch.tanh(transposed.mT)


def test_an_output_used_unseen_is_refused_by_the_logits():
    model, x = lively(_Wired(_view)), images()
    with pytest.raises(ValueError, match=r"fold_batchnorm=True: .* differ .* used elsewhere too"):
        with searching(model, x, fold_batchnorm=True):
            pass


def test_the_wrong_fold_is_refused_at_any_size_of_the_logits():
    model, x = lively(_Wired(_view)), images()
    for factor in (1e-6, 1e6):
        with torch.no_grad():
            for p in model.head.linear.parameters():
                p.mul_(factor)
        with pytest.raises(ValueError, match="fold_batchnorm=True"):
            with searching(model, x, fold_batchnorm=True):
                pass


class _Standardised(nn.Conv2d):
    """A subclass that does something else with its weight."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight, self.bias)


@pytest.mark.parametrize(
    "layers",
    [
        [_Standardised(3, 6, 3), nn.BatchNorm2d(6)],
        [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, track_running_stats=False)],
        [nn.Conv2d(3, 6, 3), nn.ReLU(), nn.BatchNorm2d(6)],
        [nn.BatchNorm2d(3), nn.Conv2d(3, 6, 3)],
        [nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 6, 3)), nn.BatchNorm2d(6)],
    ],
    ids=["subclass", "batch statistics", "relu between", "bn first", "weight norm"],
)
def test_what_cannot_be_folded_gives_the_model_itself_with_a_note(layers):
    model, x = _sequence(*layers), images()
    with searching(model, x, fold_batchnorm=True) as search:
        assert search.is_exact and search.model is model
        assert len(search.notes) == 1 and "no BatchNorm layer is given" in search.notes[0]
        assert "fold_batchnorm=True was left out" in search.notes[0]
        assert torch.equal(search.forward(x), model(x))


def test_features_that_are_not_channels_are_not_folded():
    model = lively(
        nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Flatten(), nn.Linear(64, 5))
    )
    x = images(size=(8,), channels=8)
    with searching(model, x, fold_batchnorm=True) as search:
        assert search.model is model


@pytest.mark.parametrize("hooked", [0, 1])
def test_a_layer_with_a_hook_is_left_as_it_is(hooked):
    model, x = conv_bn(), images()
    seen = []
    model[hooked].register_forward_hook(lambda module, args, out: seen.append(out.detach()))
    with searching(model, x, fold_batchnorm=True) as search:
        own = model(x)
        expected = seen[-1]
        assert _norms_run(search, x) == 1
        assert torch.equal(seen[-1], expected)
        torch.testing.assert_close(search.forward(x), own)


def test_refresh_follows_weights_and_statistics_in_the_same_memory():
    model, x, y = conv_bn(bias=False), images(), labels(images())
    changed = lively(conv_bn(bias=False), seed=7)
    with searching(model, x, fold_batchnorm=True) as search:
        before = {name: p.data_ptr() for name, p in search.model.named_parameters()}
        stale = search.forward(x)
        model.load_state_dict(changed.state_dict())
        search.refresh()
        logits, grad = input_gradient(search.forward, x, y)
        assert {name: p.data_ptr() for name, p in search.model.named_parameters()} == before
    logits64, grad64 = in_float64(model, x, y)
    assert relative(stale, logits64) > 0.1
    assert relative(logits, logits64) < 1e-5 and relative(grad, grad64) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_is_held_to_its_own_roundings(dtype):
    model, x, y = conv_bn(), images(), labels(images())
    logits64, grad64 = in_float64(model, x, y)
    half = conv_bn().to(dtype)
    own, _ = input_gradient(half, x.to(dtype), y)
    with searching(half, x.to(dtype), fold_batchnorm=True) as search:
        assert _norms_run(search, x.to(dtype)) == 0 and search.notes == ()
        logits, _ = input_gradient(search.forward, x.to(dtype), y)
    assert logits.dtype == dtype
    assert relative(logits, logits64) <= 2 * relative(own, logits64)
    wrong = lively(_Wired(_view)).to(dtype)
    with pytest.raises(ValueError, match="fold_batchnorm=True"):
        with searching(wrong, x.to(dtype), fold_batchnorm=True):
            pass


def test_a_random_model_is_folded_though_it_never_answers_twice_alike():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = conv_bn()

        def forward(self, x):
            return self.net(x + 0.1 * torch.randn_like(x))

    model, x = Noisy(), images()
    with searching(model, x, fold_batchnorm=True) as search:
        assert not search.is_exact and _norms_run(search, x) == 0
        torch.manual_seed(3)
        ours = search.forward(x)
        torch.manual_seed(3)
        torch.testing.assert_close(ours, model(x))
