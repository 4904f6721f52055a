"""Contract C4 for AutoAttack's members: no trace on model, arguments or process, or on errors."""

import pytest
import torch
from members import MEMBERS, member
from torch import nn
from toy_models import NORMS, FailingAt, same_bits
from traces import process_state, trace_of

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
    bits, before, process = x.detach().clone(), trace_of(net), process_state()
    result = member(name, norm, scale=2.0).run(net, x, y, execution=execution)
    assert trace_of(net) == before and process_state() == process
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
    before, process = trace_of(net), process_state()
    with pytest.raises(type(error)):
        member(name, norm).run(model, x, y)
    assert model.calls == call + 1
    assert trace_of(net) == before and process_state() == process


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
        before = process_state()
        results.append(member(name, "linf").run(noisy, x, y))
        assert process_state() == before
    assert same_bits(results[0].x_adv, results[1].x_adv)
    assert torch.equal(results[0].success, results[1].success)
