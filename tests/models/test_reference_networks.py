"""What every reference network keeps, small WRNs standing in for the large one."""

import random
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastadv.models import (
    digits_net,
    fast_cifar_net,
    mnist_conv_net,
    mnist_net,
    preact_resnet18,
    wide_resnet,
)

_CIFAR = (3, 32, 32)
_MNIST = (1, 28, 28)
_SMALL = {
    "digits": (digits_net, (1, 8, 8)),
    "mnist": (mnist_net, _MNIST),
    "mnist-conv": (mnist_conv_net, _MNIST),
    "fast-cifar": (partial(fast_cifar_net, width=8), _CIFAR),
}
_NETS = _SMALL | {
    "preact-resnet18": (preact_resnet18, _CIFAR),
    "wrn-10-2": (partial(wide_resnet, depth=10, width=2), _CIFAR),
}
# first weight of the first convolution and last of the last linear layer, at seed 3
_GOLDEN = {
    "digits": ("-0x1.526c3cp-2", "0x1.0e6938p-5"),
    "mnist": ("-0x1.fba258p-3", "-0x1.136834p-6"),
    "mnist-conv": ("-0x1.526c3cp-2", "0x1.c4ed9cp-7"),
    "fast-cifar": ("-0x1.86c6e6p-3", "0x1.2ab53ep-3"),
    "preact-resnet18": ("-0x1.86c6e6p-3", "-0x1.314844p-6"),
    "wrn-10-2": ("-0x1.9e7b48p-3", "-0x1.c4a35ap-9"),
}


def _images(shape, n, *, dtype=torch.float32):
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def _trained_statistics(net, shape, n=2, *, dtype=torch.float64):
    """The network in eval mode, its running statistics moved from 0 and 1, and n images."""
    model, x = net(seed=1).to(dtype), _images(shape, n, dtype=dtype)
    with torch.no_grad():
        model(x)
    return model.eval(), x


@pytest.fixture(params=_NETS)
def network(request):
    return _NETS[request.param]


@pytest.mark.parametrize("name", _NETS)
def test_weights_are_those_that_every_release_draws(name):
    layers = list(_NETS[name][0](seed=3).modules())
    first = next(m.weight for m in layers if isinstance(m, nn.Conv2d)).detach().flatten()[0]
    last = [m.weight for m in layers if isinstance(m, nn.Linear)][-1].detach().flatten()[-1]
    # 2^-22: a machine that fuses the multiplication and the addition of uniform_ rounds once less
    expected = [pytest.approx(float.fromhex(value), rel=2**-22) for value in _GOLDEN[name]]
    assert [first.item(), last.item()] == expected


def test_the_same_seed_gives_the_same_state_and_another_seed_other_weights(network):
    net, _ = network
    first, again, other = (net(seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[key], again[key]) for key in first)
    weights = [key for key, value in first.items() if value.ndim > 1]
    assert weights and not any(torch.equal(first[key], other[key]) for key in weights)


def test_neither_construction_nor_training_mode_touches_the_global_generators(network):
    net, shape = network
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    net(seed=5)(_images(shape, 2)).sum().backward()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]


def test_classes_set_the_logits(network):
    net, shape = network
    logits = net(classes=7).eval()(_images(shape, 3))
    assert (logits.shape, logits.dtype) == ((3, 7), torch.float32)


def test_no_classes_are_refused(network):
    with pytest.raises(ValueError, match=r"classes must be at least 1; got 0\."):
        network[0](classes=0)


def test_the_input_gradient_is_the_slope_of_the_loss(network):
    model, x = _trained_statistics(*network)
    y = torch.tensor([1, 2])
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(F.cross_entropy(model(leaf), y), leaf)
    direction = _images(x.shape[1:], 3, dtype=x.dtype)[1:] - 0.5
    h = 1e-6  # central differences: h^2 and 2^-53 / h are both below 1e-9
    with torch.no_grad():
        up, down = (F.cross_entropy(model(x + s * h * direction), y) for s in (1, -1))
    slope = (grad * direction).sum()
    assert grad.flatten(1).abs().amax(1).min() > 0
    assert abs((up - down) / (2 * h) - slope) < 1e-6 * grad.norm() * direction.norm()


def test_logits_do_not_depend_on_the_batch_in_eval_mode(network):
    model, x = _trained_statistics(*network)
    with torch.no_grad():
        alone = torch.cat([model(x[i : i + 1]) for i in range(len(x))])
        together = model(x)
    assert (alone - together).abs().max() < 1e-12 * together.abs().max()


def test_channels_last_gives_the_same_logits(network):
    model, x = _trained_statistics(*network)  # fp64: layouts agree to rounding, far below 1e-12
    with torch.no_grad():
        expected = model(x)
        model = model.to(memory_format=torch.channels_last)
        got = model(x.to(memory_format=torch.channels_last))
    assert (got - expected).abs().max() < 1e-12 * expected.abs().max()


def test_bf16_autocast_keeps_the_logits_to_its_rounding(network):
    model, x = _trained_statistics(*network, dtype=torch.float32)
    layers = sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model.modules())
    with torch.no_grad():
        expected = model(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = model(x)
    assert got.dtype == torch.bfloat16
    # a layer rounds weights, inputs and outputs, each by at most 2^-9, and errors at most add up
    assert (got - expected).abs().max() < layers * 3 * 2**-9 * expected.abs().max()


def test_it_compiles_to_one_graph_in_both_modes(network):
    model, x = _trained_statistics(*network, dtype=torch.float32)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert torch.equal(compiled(x), model(x))
        assert compiled.train()(x).isfinite().all()
    torch.compiler.reset()


@pytest.mark.parametrize("name", _SMALL)
def test_twenty_steps_fit_a_tiny_batch(name):
    net, shape = _SMALL[name]
    model, y = net(seed=2), torch.arange(8)
    x = F.interpolate(_images((shape[0], 4, 4), 8), shape[1:])  # 16 squares of noise: unlike
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(20):
        loss = F.cross_entropy(model(x), y)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] / 2
