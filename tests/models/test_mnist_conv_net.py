import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fastadv.models import mnist_conv_net, mnist_net


def _multiplications(model):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 1, 28, 28))
    return counter.get_total_flops() / 2


def test_it_has_as_many_parameters_as_stated():
    assert sum(p.numel() for p in mnist_conv_net().parameters()) == 312_202


def test_it_costs_as_much_as_stated():
    cost = _multiplications(mnist_conv_net())
    assert round(cost / 1e6, 1) == 10.0
    assert round(cost / _multiplications(mnist_net())) == 16


def test_width_and_hidden_set_the_layers():
    layers = [m for m in mnist_conv_net(width=3, hidden=1024) if hasattr(m, "weight")]
    assert [len(m.weight) for m in layers] == [3, 3, 6, 6, 1024, 1024, 10]
    assert [type(m) for m in layers] == [nn.Conv2d] * 4 + [nn.Linear] * 3


@pytest.mark.parametrize("name", ["width", "hidden"])
def test_a_size_of_zero_is_refused(name):
    with pytest.raises(ValueError, match=rf"{name} must be at least 1; got 0\."):
        mnist_conv_net(**{name: 0})
