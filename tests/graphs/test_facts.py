"""Whatever a recorded step has baked in changes the facts; values of tensors do not."""

import copy

import pytest
import torch
from module_changes import CHANGES, small_net

from fastadv.graphs.facts import module_facts, optimizer_places, optimizer_settings

_SETTINGS = {"momentum", "weight_decay"}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_module_changes_its_facts(change):
    net = small_net()
    kept = list(net.state_dict().values())  # so that no address is used again
    before = module_facts(net)
    assert before == module_facts(net) and hash(before) == hash(module_facts(net))
    CHANGES[change](net)
    assert module_facts(net) != before and kept


def test_values_of_weights_and_statistics_are_no_facts():
    net = small_net()
    before = module_facts(net)
    net(torch.rand(2, 2, 5, 5)).sum().backward()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(1.0)
    net.load_state_dict({name: value + 1 for name, value in net.state_dict().items()})
    assert module_facts(net) == before


def test_settings_and_state_of_an_optimizer_are_facts_and_its_learning_rate_is_none():
    net = small_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net(torch.rand(2, 2, 5, 5)).sum().backward()

    def read():
        return optimizer_settings(optimizer, names=_SETTINGS), optimizer_places(optimizer)

    facts = [read()]
    optimizer.step()  # makes the momentum
    facts.append(read())
    optimizer.param_groups[0]["lr"] = 0.2
    optimizer.step()
    assert read() == facts[-1]
    optimizer.param_groups[0]["momentum"] = 0.8
    facts.append(read())
    old = optimizer.state_dict()
    optimizer.load_state_dict(copy.deepcopy(old))  # the state lies elsewhere
    facts.append(read())
    assert len(set(facts)) == 4 and old["state"]
