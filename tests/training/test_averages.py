"""Averages of the weights against their formulas."""

import copy

import pytest
import torch
from torch import nn
from training_problems import (
    THREAT,
    batches,
    conv_net,
    largest_difference,
    sgd,
    train_batch,
)

from fastadv import training


def test_ema_warms_up_as_its_formula_says():
    net, decay = nn.Linear(1, 1, bias=False, dtype=torch.float64), 0.6
    average, values = training.ema(net, decay=decay), []
    expected = None
    for t in range(8):
        with torch.no_grad():
            net.weight.fill_(float(t * t))
        average.update_parameters(net)
        kept = min(decay, (1 + t) / (10 + t))
        # the first update copies the weights
        expected = float(t * t) if t == 0 else kept * expected + (1 - kept) * t * t
        values.append(average.module.weight.item())
        assert values[-1] == pytest.approx(expected, rel=1e-12)
    assert min(decay, 8 / 17) < decay  # eight updates end before the warm-up does
    for _ in range(20):
        average.update_parameters(net)
    assert average.module.weight.item() == pytest.approx(49.0, abs=0.01)


def test_ema_reaches_its_decay_and_keeps_it():
    net = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    average = training.ema(net, decay=0.2)  # (1 + t) / (10 + t) passes 0.2 at t = 2
    with torch.no_grad():
        net.weight.zero_()
        for _ in range(4):
            average.update_parameters(net)
        net.weight.fill_(1.0)
    average.update_parameters(net)
    assert average.module.weight.item() == pytest.approx(0.8, rel=1e-12)


def test_swa_is_the_plain_mean():
    net = conv_net(dtype=torch.float64)
    average, seen = training.swa(net), []
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        with torch.no_grad():
            for p in net.parameters():
                p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype))
        average.update_parameters(net)
        seen.append([p.detach().clone() for p in net.parameters()])
    for mean, *values in zip(average.parameters(), *seen, strict=True):
        # torch's own average keeps 1 / (n + 1) in float32
        torch.testing.assert_close(mean, torch.stack(values).mean(0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("make", [training.ema, training.swa])
def test_averages_copy_the_buffers_and_leave_the_model_alone(make):
    net = conv_net(bn=True)
    average = make(net)
    weights = copy.deepcopy(net)
    optimizer = sgd(net)
    for x, y in batches(3):
        train_batch(training.FastAT(THREAT), net, optimizer, x, y)
        before = copy.deepcopy(net)
        average.update_parameters(net)
        assert largest_difference(net, before) == 0
        for copied, b in zip(average.module.buffers(), net.buffers(), strict=True):
            assert torch.equal(copied, b)
    assert int(net[1].num_batches_tracked) == 3
    assert largest_difference(average.module, net) > 0 < largest_difference(average.module, weights)
    loaded = make(conv_net(bn=True))
    loaded.load_state_dict(average.state_dict())
    assert largest_difference(loaded, average) == 0 and int(loaded.n_averaged) == 3


def test_an_average_of_a_wrapped_model_is_one_of_the_model_inside():
    net = conv_net()
    average = training.ema(torch.nn.DataParallel(net))
    assert type(average.module) is nn.Sequential
    average.update_parameters(torch.nn.DataParallel(net))
    assert largest_difference(average.module, net) == 0
