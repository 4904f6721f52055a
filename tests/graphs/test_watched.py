"""Numbers of facts: whatever changes these changes the number, and nothing else is read again."""

import copy

import pytest
import torch
from module_changes import CHANGES, small_net
from torch import nn

from fastadv.graphs import watched
from fastadv.graphs.facts import module_facts, optimizer_places


class Counted:
    """Facts, and how often they were asked for."""

    def __init__(self, facts):
        self.facts, self.asked = facts, 0

    def __call__(self):
        self.asked += 1
        return self.facts()


def numbered(net):
    counted = Counted(lambda: module_facts(net))
    return watched.Numbered(counted, lambda: [net]), counted


class Holder:
    """An object that is neither a module nor a container."""

    def __init__(self):
        self.inside = 1


def _inside_an_object(net):
    net.holder.inside = 2


def _in_a_nested_list(net):
    net.nested[1][0] = 3


def _a_module_that_is_no_submodule(net):
    net.apart[0].p = 0.3


def _resized_in_place(net):
    net[1].running_var.data = net[1].running_var.data.view(2, 1)


def _of_another_class(net):
    net[2].__class__ = nn.Dropout1d


def _true_for_one(net):
    net.flag = True


MORE = {
    "inside an object": _inside_an_object,
    "in a nested list": _in_a_nested_list,
    "a module apart": _a_module_that_is_no_submodule,
    "another shape at the same place": _resized_in_place,
    "another class": _of_another_class,
    "True for 1": _true_for_one,
    "the name of an attribute": lambda net: setattr(net, "other", vars(net).pop("last")),
}


def _full_net():
    net = small_net()
    net.holder, net.nested, net.flag = Holder(), [0, [1, 2]], 1
    object.__setattr__(net, "apart", [nn.Dropout(0.2)])
    net.last = "last"
    return net


@pytest.mark.parametrize("change", CHANGES | MORE)
def test_a_change_of_the_facts_changes_the_number(change):
    net = _full_net()
    kept = list(net.state_dict().values())  # so that no address is used again
    numbers, counted = numbered(net)
    before, facts = numbers.number(), module_facts(net)
    assert numbers.number() == before and counted.asked == 1
    (CHANGES | MORE)[change](net)
    assert (numbers.number() != before) == (module_facts(net) != facts) and kept
    assert counted.asked == 2
    assert change == "the name of an attribute" or numbers.number() != before
    assert counted.asked == 2


def test_facts_that_come_back_have_their_number_again():
    net = _full_net()
    numbers, counted = numbered(net)
    first = numbers.number()
    net.eval()
    second = numbers.number()
    net.train()
    assert numbers.number() == first != second
    assert counted.asked == 3


def test_training_reads_the_facts_of_a_module_once():
    net = _full_net()
    numbers, counted = numbered(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for _ in range(4):
        net(torch.rand(2, 2, 5, 5)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        numbers.number()
    assert counted.asked == 1


def test_two_modules_never_share_a_number():
    one, other = small_net(), small_net()
    found = [numbered(net)[0].number() for net in (one, other, one)]
    assert len(set(found)) == 3


def test_holders_that_are_replaced_are_looked_at_anew():
    net = small_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    numbers = watched.Numbered(
        lambda: optimizer_places(optimizer),
        lambda: [optimizer.state, *(group["params"] for group in optimizer.param_groups)],
    )
    found = [numbers.number()]
    for _ in range(2):
        net(torch.rand(2, 2, 5, 5)).sum().backward()
        optimizer.step()
        found.append(numbers.number())
    assert found[0] != found[1] == found[2]
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert numbers.number() != found[-1]
    optimizer.state.clear()
    assert numbers.number() == found[0]
