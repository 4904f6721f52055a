"""Models that hold their nets in a list: what of training follows them, and what refuses."""

import copy
import math

import pytest
import torch
from torch import nn
from training_problems import THREAT, batches, conv_net

from fastadv import training


class Listed(nn.Module):
    """Its nets are no submodules."""

    def __init__(self, *nets):
        super().__init__()
        self.nets = list(nets)

    def forward(self, x):
        return sum(net(x) for net in self.nets)


class Registered(Listed):
    def __init__(self, *nets):
        super().__init__()
        self.nets = nn.ModuleList(nets)


def test_a_rollback_puts_back_nets_in_a_list():
    ((x, y),) = batches(1)
    nets = conv_net(bn=True), conv_net(bn=True)
    model = Listed(*nets)
    before = [copy.deepcopy(net.state_dict()) for net in nets]
    optimizer = torch.optim.SGD([p for net in nets for p in net.parameters()], lr=0.0)
    sentinel = training.Sentinel(THREAT, x, y, every=1, on_collapse="rollback")
    step = training.FastAT(THREAT)
    sentinel.keep(model, optimizer)
    kept = sentinel.good_weights
    assert len(kept) == sum(map(len, before)) and "1: 0.weight" in kept and "2: 0.weight" in kept
    sentinel.load_state_dict(copy.deepcopy(sentinel.state_dict()))
    with torch.no_grad():
        for net in nets:
            net[0].weight.fill_(math.nan)
            net[1].running_mean.fill_(3.0)
    step.loss(model, x, y)
    with pytest.warns(training.TrainingWarning, match="nan: .*Back to the last good weights"):
        assert isinstance(sentinel.watch(step, model, optimizer), training.PGDAT)
    for net, old in zip(nets, before, strict=True):
        assert all(torch.equal(value, old[name]) for name, value in net.state_dict().items())


def test_nets_in_a_list_that_are_not_finite_are_never_the_last_good_ones():
    ((x, y),) = batches(1)
    model = Listed(conv_net())
    with torch.no_grad():
        model.nets[0][0].weight.fill_(math.nan)
    optimizer = torch.optim.SGD(model.nets[0].parameters(), lr=0.0)
    sentinel = training.Sentinel(THREAT, x, y, every=1)
    with pytest.raises(training.Collapse, match="the weights are not finite"):
        sentinel.keep(model, optimizer)


def test_awp_perturbs_nets_in_a_list_as_those_of_a_module_list():
    ((x, y),) = batches(1, dtype=torch.float64)
    nets = [conv_net(bn=True, dtype=torch.float64) for _ in range(2)]
    nets[1][0].weight = nets[0][0].weight  # shared, and moved once
    found = []
    for kind in (Listed, Registered):
        own = copy.deepcopy(nets)
        before = [p.detach().clone() for net in own for p in net.parameters()]
        (loss,) = training.FastAT(THREAT, modifiers=[training.AWP(0.05)])(kind(*own), x, y)
        loss.backward()
        found.append([loss.detach(), *(p.grad for net in own for p in net.parameters())])
        after = [p for net in own for p in net.parameters()]
        assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    plain = training.FastAT(THREAT).loss(Listed(*copy.deepcopy(nets)), x, y)
    assert float(found[0][0] - plain.detach()) > 1e-4


def test_awp_without_a_weight_that_it_finds_says_so():
    ((x, y),) = batches(1)
    net = conv_net()
    net.requires_grad_(False)
    bias = nn.Parameter(torch.zeros(1))

    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.bias = net, bias

        def forward(self, x):
            return self.net(x) + self.bias

    with pytest.raises(ValueError, match="AWP perturbs weights.*Shifted has none.*nn.ModuleList"):
        training.FastAT(THREAT, modifiers=[training.AWP()]).loss(Shifted(), x, y)


@pytest.mark.parametrize("make", [training.ema, training.swa])
def test_averages_of_nets_in_a_list_are_refused(make):
    net, head = conv_net(), nn.Linear(2, 2)
    with pytest.raises(ValueError, match="Listed has 0, and reaches 6 more.*nn.ModuleList"):
        make(Listed(net))
    mixed = Listed(net)
    mixed.head = head
    with pytest.raises(ValueError, match="Listed has 2, and reaches 6 more"):
        make(mixed)
    net.requires_grad_(False)  # a teacher
    make(mixed).update_parameters(mixed)
    make(Registered(net)).update_parameters(Registered(net))
