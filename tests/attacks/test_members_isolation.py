"""Contract C4 for AutoAttack's members: no trace on model, arguments or process, or on errors."""

import pytest
import torch
from members import MEMBERS, member
from test_isolation import _process, _trace
from torch import nn
from toy_models import NORMS, FailingAt, same_bits

import fastadv

_WAYS = [fastadv.Execution(batch_size=3), fastadv.Execution(batching="plain", batch_size=3)]


def _net():
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(120, 4),
    )
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) / 5)
    net.train()
    net[1].eval()
    net[0].bias.requires_grad_(False)
    net[0].weight.grad = torch.full_like(net[0].weight, 0.25)
    return net


def _data(net):
    x = torch.rand(8, 3, 5, 6, generator=torch.Generator().manual_seed(1))
    training = [m for m in net.modules() if m.training]
    for m in training:
        m.training = False
    with torch.no_grad():
        y = net(x).argmax(1)
    for m in training:
        m.training = True
    return x, y


@pytest.mark.parametrize("execution", _WAYS, ids=["continuous", "plain"])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", MEMBERS)
def test_everything_is_as_it_was(name, norm, execution):
    net = _net()
    x, y = _data(net)
    x.requires_grad_()
    bits, before, process = x.detach().clone(), _trace(net), _process()
    result = member(name, norm, scale=2.0).run(net, x, y, execution=execution)
    assert _trace(net) == before and _process() == process
    assert same_bits(x.detach(), bits) and x.requires_grad and x.grad is None
    assert not result.x_adv.requires_grad
    result.x_adv.fill_(7.0)  # not a view of an argument
    assert same_bits(x.detach(), bits)
    assert {False, True} == {flag for _, flag in before["training"]}


class _Boom(Exception):
    pass


@pytest.mark.parametrize("error", [_Boom("forward"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("call", [1, 4])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", MEMBERS)
def test_everything_is_as_it_was_after_an_error(name, norm, call, error):
    net = _net()
    x, y = _data(net)
    model = FailingAt(net, call, error)
    before, process = _trace(net), _process()
    with pytest.raises(type(error)):
        member(name, norm).run(model, x, y)
    assert model.calls == call + 1
    assert _trace(net) == before and _process() == process


@pytest.mark.filterwarnings("ignore:unconfirmed")
@pytest.mark.parametrize("name", MEMBERS)
def test_a_random_model_gives_the_same_result_twice(name):
    net = _net()
    x, y = _data(net)

    def noisy(z):
        return net(z + 0.01 * torch.randn_like(z))

    results = []
    for seed in (1, 99):
        torch.manual_seed(seed)
        before = _process()
        results.append(member(name, "linf").run(noisy, x, y))
        assert _process() == before
    assert same_bits(results[0].x_adv, results[1].x_adv)
    assert torch.equal(results[0].success, results[1].success)
