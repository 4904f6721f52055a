import random

import numpy as np
import pytest
import torch
from torch import nn

from fastadv.models import digits_net, mnist_conv_net, mnist_net
from fastadv.models.initialisation import build_seeded

_NETS = pytest.mark.parametrize("net", [digits_net, mnist_net, mnist_conv_net])


@_NETS
def test_the_same_seed_gives_the_same_weights(net):
    torch.manual_seed(1)
    first = net(seed=3).state_dict()
    torch.manual_seed(2)
    second = net(seed=3).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


@_NETS
def test_another_seed_changes_every_parameter(net):
    other = net(seed=4).state_dict()
    assert not any(torch.equal(p, other[name]) for name, p in net().state_dict().items())


@_NETS
def test_global_generators_are_left_alone(net):
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    net(seed=5)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]


def test_the_cuda_generator_is_left_alone():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    before = torch.cuda.get_rng_state()
    mnist_net(seed=5)
    assert torch.equal(torch.cuda.get_rng_state(), before)


@_NETS
def test_parameters_fill_the_interval_of_the_default_initialisation(net):
    for layer in net().modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            bound = layer.weight[0].numel() ** -0.5
            for parameter in layer.parameters():
                assert parameter.abs().max() <= bound
            # the sample standard deviation of n uniforms is within 4 / sqrt(5 n) relative (4 sigma)
            n = layer.weight.numel()
            relative = layer.weight.std().item() / (bound / 3**0.5) - 1
            assert abs(relative) < 4 / (5 * n) ** 0.5


@_NETS
def test_the_network_is_on_the_cpu_trainable_and_in_training_mode(net):
    model = net()
    assert all(p.requires_grad and p.device.type == "cpu" for p in model.parameters())
    assert model.training


def test_a_default_device_does_not_move_the_network():
    with torch.device("meta"):
        model = digits_net()
    assert torch.equal(model[0].weight, digits_net()[0].weight)


class _Constant(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("value", torch.ones(3))


@pytest.mark.parametrize("layer", [nn.PReLU, _Constant])
def test_a_layer_of_another_kind_is_refused(layer):
    message = f"Conv2d, Linear and BatchNorm layers only; got {layer.__name__} with parameters or"
    with pytest.raises(TypeError, match=message):
        build_seeded(lambda: nn.Sequential(layer()), seed=0)


@pytest.mark.parametrize("layer", [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d])
@pytest.mark.parametrize("initialisation", ["torch", "he"])
def test_batchnorm_starts_as_the_identity_with_fresh_statistics(layer, initialisation):
    model = build_seeded(lambda: layer(3), seed=0, initialisation=initialisation)
    state = model.state_dict()
    assert {key: value.tolist() for key, value in state.items()} == {
        "weight": [1, 1, 1],
        "bias": [0, 0, 0],
        "running_mean": [0, 0, 0],
        "running_var": [1, 1, 1],
        "num_batches_tracked": 0,
    }


def test_batchnorm_without_weights_or_statistics_is_admitted():
    model = build_seeded(lambda: nn.BatchNorm2d(3, affine=False, track_running_stats=False), seed=0)
    assert model.state_dict() == {}


def test_batchnorm_draws_nothing():
    def build(*between):
        return nn.Sequential(nn.Conv2d(1, 3, 3), *between, nn.Conv2d(3, 2, 3))

    plain = build_seeded(build, seed=1)
    with_norm = build_seeded(lambda: build(nn.BatchNorm2d(3)), seed=1)
    assert torch.equal(plain[1].weight, with_norm[2].weight)


def test_he_fills_the_interval_of_its_variance_with_biases_zero():
    model = build_seeded(
        lambda: nn.Sequential(nn.Conv2d(4, 32, 5, groups=2), nn.Linear(100, 50)),
        seed=0,
        initialisation="he",
    )
    bounds = (6 / (32 // 2 * 5 * 5)) ** 0.5, 100**-0.5  # a group has 16 of the 32 outputs
    for layer, bound in zip(model, bounds, strict=True):
        # the largest of n = 1,600 uniforms misses the bound by 1 % with chance 0.99^n = 1e-7
        assert 0.99 * bound < layer.weight.abs().max() <= bound
        assert not layer.bias.any()


def test_another_initialisation_is_refused():
    with pytest.raises(ValueError, match="initialisation must be 'torch' or 'he'; got 'xavier'"):
        build_seeded(lambda: nn.Linear(2, 2), seed=0, initialisation="xavier")
