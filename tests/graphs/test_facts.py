"""Whatever a recorded step has baked in changes the facts; values of tensors do not."""

import copy

import pytest
import torch
from torch import nn

from fastadv.graphs.facts import module_facts, optimizer_facts

_SETTINGS = {"momentum", "weight_decay"}


def _net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.5), nn.Flatten())


def _replace(net: nn.Sequential) -> None:
    net[0] = nn.Conv2d(1, 2, 3)


def _assign(net: nn.Sequential) -> None:
    state = {name: value.clone() for name, value in net.state_dict().items()}
    net.load_state_dict(state, assign=True)


_CHANGES = {
    "mode": lambda net: net[1].eval(),
    "a plain attribute": lambda net: setattr(net[2], "p", 0.1),
    "a tuple": lambda net: setattr(net[0], "padding", (1, 1)),
    "a plain tensor": lambda net: setattr(net, "scale", torch.ones(1)),
    "dtype": lambda net: net.double(),
    "layout": lambda net: net.to(memory_format=torch.channels_last),
    "a frozen weight": lambda net: net[0].weight.requires_grad_(False),
    "a submodule": _replace,
    "tensors assigned": _assign,
    "a hook": lambda net: net[0].register_forward_hook(lambda *a: None),
    "a buffer gone": lambda net: setattr(net[1], "running_mean", None),
}


@pytest.mark.parametrize("change", _CHANGES)
def test_a_change_of_the_module_changes_its_facts(change):
    net = nn.Sequential(nn.Conv2d(2, 2, 3), *_net()[1:])
    kept = list(net.state_dict().values())  # so that no address is used again
    before = module_facts(net)
    assert before == module_facts(net) and hash(before) == hash(module_facts(net))
    _CHANGES[change](net)
    assert module_facts(net) != before and kept


def test_values_of_weights_and_statistics_are_no_facts():
    net = _net()
    before = module_facts(net)
    net(torch.rand(2, 1, 5, 5)).sum().backward()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(1.0)
    net.load_state_dict({name: value + 1 for name, value in net.state_dict().items()})
    assert module_facts(net) == before


def test_settings_and_state_of_an_optimizer_are_facts_and_its_learning_rate_is_none():
    net = _net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net(torch.rand(2, 1, 5, 5)).sum().backward()
    facts = [optimizer_facts(optimizer, settings=_SETTINGS)]
    optimizer.step()  # makes the momentum
    facts.append(optimizer_facts(optimizer, settings=_SETTINGS))
    optimizer.param_groups[0]["lr"] = 0.2
    optimizer.step()
    assert optimizer_facts(optimizer, settings=_SETTINGS) == facts[-1]
    optimizer.param_groups[0]["momentum"] = 0.8
    facts.append(optimizer_facts(optimizer, settings=_SETTINGS))
    old = optimizer.state_dict()
    optimizer.load_state_dict(copy.deepcopy(old))  # the state lies elsewhere
    facts.append(optimizer_facts(optimizer, settings=_SETTINGS))
    assert len(set(facts)) == 4 and old["state"]
