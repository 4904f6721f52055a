import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from fastadv.models import fast_cifar_net, preact_resnet18


def _multiplications(model):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, 3, 32, 32))
    return counter.get_total_flops() / 2


@pytest.mark.parametrize(("width", "parameters"), [(64, 1_978_026), (16, 124_722)])
def test_it_has_as_many_parameters_as_stated(width, parameters):
    assert sum(p.numel() for p in fast_cifar_net(width=width).parameters()) == parameters


def test_it_costs_as_much_as_stated():
    cost = _multiplications(fast_cifar_net())
    assert round(cost / 1e9, 2) == 0.15
    assert round(_multiplications(preact_resnet18()) / cost, 1) == 3.7


def test_width_sets_the_channels_also_where_it_is_odd():
    model = fast_cifar_net(width=5)
    convolutions = [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert convolutions == [3, 5, 5, 20, 20, 20, 20]
    assert fast_cifar_net(width=1)(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_logits_are_those_of_the_layers_of_its_docstring():
    model = fast_cifar_net(seed=2, width=4).double().eval()
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).double()
    convolutions = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d)]
    hidden = x
    for index, weight in enumerate(convolutions):
        hidden = F.conv2d(hidden, weight, padding=1)
        if index in (1, 3, 5):
            hidden = F.max_pool2d(hidden, 2)
        hidden = F.gelu(hidden / (1 + 1e-5) ** 0.5)  # the statistics are fresh: mean 0, variance 1
    assert hidden.shape == (2, 16, 4, 4)
    expected = 0.25 * F.linear(hidden.flatten(2).amax(2), model.linear.weight, model.linear.bias)
    assert (model(x) - expected).abs().max() < 1e-12


def test_its_running_statistics_move_by_three_tenths_a_batch():
    model = fast_cifar_net(width=4)
    convolution, norm = model.features[0], model.features[1]
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model(x)
        mean = convolution(x).mean((0, 2, 3))
    torch.testing.assert_close(norm.running_mean, 0.3 * mean)
    assert all(m.momentum == 0.3 for m in model.modules() if isinstance(m, nn.BatchNorm2d))


def test_a_width_of_zero_is_refused():
    with pytest.raises(ValueError, match=r"width must be at least 1; got 0\."):
        fast_cifar_net(width=0)
