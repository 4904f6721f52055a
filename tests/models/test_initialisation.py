import random

import numpy as np
import pytest
import torch
from torch import nn

from fastadv.models import digits_net, mnist_net
from fastadv.models.initialisation import build_seeded

_NETS = pytest.mark.parametrize("net", [digits_net, mnist_net])


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


def test_a_layer_of_another_kind_is_refused():
    with pytest.raises(TypeError, match="Conv2d and Linear layers only; got BatchNorm2d"):
        build_seeded(lambda: nn.Sequential(nn.BatchNorm2d(3)), seed=0)
