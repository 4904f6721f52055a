"""Section A, isolation: the modules that a model reaches, however it holds them."""

import functools
import weakref
from collections import deque

import pytest
import torch
from torch import nn

import fastadv
from fastadv import reach
from fastadv.models import digits_net

GLOBAL = nn.Linear(2, 2)
GLOBALS = [nn.Linear(2, 2), nn.Linear(2, 2)]


class Holder:
    def __init__(self, held):
        self.held = held

    def __call__(self, x):
        return self.held(x)

    def method(self, x):
        return self.held(x)


class Slotted:
    __slots__ = ("__hidden", "empty")

    def __init__(self, held):
        self.__hidden = held


class Base(nn.Module):
    def __init__(self, held):
        super().__init__()
        self.held = held
        self.own = nn.Linear(2, 2)


class Named(list):
    """A list with attributes of its own."""


def closing_over(held):
    return lambda x: held(x)


def a_class_that_closes_over(held):
    class Calling:
        def __call__(self, x):
            return held(x)

    return Calling()


def a_module_that_closes_over(held):
    class Forward(nn.Module):
        def forward(self, x):
            return held(x)

    return Forward()


def a_replaced_forward(held):
    net = nn.Linear(2, 2)
    net.forward = lambda x: held(x)
    return net


def hooked(held):
    net = nn.Linear(2, 2)
    net.register_forward_hook(lambda module, args, output: held(output))
    return net


def recursive(held):
    def model(x, depth=0):
        return held(x) if depth else model(x, 1)

    return model


def in_a_comprehension(held):
    return lambda x: [part(x) for part in [held]]


def a_default(held):
    def model(x, *, net=held):
        return net(x)

    return model


def decorated(held):
    @torch.no_grad()
    def model(x):
        return held(x)

    return functools.lru_cache(model)


def an_attribute_of_a_list(held):
    ensemble = Named()
    ensemble.net = held
    return ensemble


WAYS = {
    "itself": lambda net: net,
    "a bound method": lambda net: net.forward,
    "a list": lambda net: [None, net],
    "a tuple": lambda net: (1, (2, net)),
    "a set": lambda net: {net},
    "a frozenset": lambda net: frozenset({net}),
    "a deque": lambda net: deque([net]),
    "a dict": lambda net: {"a": 1, "b": net},
    "a partial's function": lambda net: functools.partial(net),
    "a partial's argument": lambda net: functools.partial(torch.add, net),
    "a partial's keyword": lambda net: functools.partial(torch.add, nets=[net]),
    "a function's closure": closing_over,
    "a function's default": a_default,
    "a comprehension": in_a_comprehension,
    "a decorated function": decorated,
    "a recursive function": recursive,
    "an object": Holder,
    "a bound method of an object": lambda net: Holder(net).method,
    "slots": Slotted,
    "a dict's key": lambda net: {net: 1},
    "a class attribute": lambda net: type("Classy", (), {"nets": [net]})(),
    "a weak reference": weakref.ref,
    "an attribute of a list": an_attribute_of_a_list,
    "what its class closes over": a_class_that_closes_over,
    "all in one another": lambda net: functools.partial(Holder(closing_over([{"net": net}]))),
}

OF_MODULES = {
    "a module's list": lambda net: Base([net]),
    "a module's dict": lambda net: Base({"net": net}),
    "a module's object": lambda net: Base(Holder(net)),
    "a module's class attribute": lambda net: type("Classy", (Base,), {"nets": [net]})(None),
    "a module's lambda": lambda net: Base(closing_over(net)),
    "a submodule's list": lambda net: nn.Sequential(nn.Linear(2, 2), Base([net])),
    "what its forward closes over": a_module_that_closes_over,
    "its replaced forward": a_replaced_forward,
    "its hooks": hooked,
}


@pytest.mark.parametrize("way", WAYS)
def test_a_module_is_found_in(way):
    net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU()))
    model = WAYS[way](net)
    assert reach.modules_behind(model) == [net]
    assert reach.every_module(model) == list(net.modules())
    assert reach.every_module([model, model]) == list(net.modules())


@pytest.mark.parametrize("way", OF_MODULES)
def test_a_module_is_found_beside_the_submodules_in(way):
    net = nn.Linear(2, 2)
    model = OF_MODULES[way](net)
    assert reach.modules_behind(model) == [model, net]
    assert reach.every_module(model) == [*model.modules(), net]
    assert set(reach.every_parameter(model)) == {*model.parameters(), *net.parameters()}


def test_globals_that_a_function_names_are_found():
    assert reach.modules_behind(lambda x: GLOBAL(x)) == [GLOBAL]
    assert reach.modules_behind(lambda x: [GLOBALS[i](x) for i in range(2)]) == GLOBALS
    assert reach.modules_behind(lambda x: torch.relu(x)) == []


def test_objects_in_a_circle_are_looked_at_once():
    first, second = Holder(None), Holder(GLOBALS)
    first.held, second.back = second, first
    GLOBALS.append(GLOBALS)
    try:
        assert reach.modules_behind(first) == GLOBALS[:2]
    finally:
        GLOBALS.pop()
    one, other = Base(None), Base(None)
    one.held, other.held = [other], [one]
    assert reach.modules_behind(one) == [one, other]


def test_a_plain_module_is_its_modules_in_their_order():
    shared = nn.ReLU()
    with_shared = nn.Sequential(shared, nn.Sequential(nn.Linear(2, 2), shared), shared)
    for net in (digits_net(), with_shared, nn.ModuleDict({"a": shared})):
        assert reach.every_module(net) == list(net.modules())
        assert reach.modules_behind(net) == [net]
        assert set(reach.every_parameter(net)) == set(net.parameters())


def test_a_compiled_model_is_what_was_compiled():
    net = nn.Sequential(nn.Linear(2, 2), Base([GLOBAL]))
    compiled = torch.compile(net, backend="eager")
    assert reach.modules_behind(compiled) == [compiled, GLOBAL]
    assert reach.every_module(compiled) == [compiled, *net.modules(), GLOBAL]
    assert reach.modules_behind(torch.compile(lambda x: net(x), backend="eager")) == [net, GLOBAL]
    net.compile(backend="eager")
    assert reach.modules_behind(net) == [net, GLOBAL]


def test_what_holds_no_model_is_not_followed():
    assert reach.modules_behind(torch) == reach.modules_behind(nn.Linear) == []
    assert reach.modules_behind(Base) == reach.modules_behind(torch.ones(2)) == []
    data = [(i, [(i,)]) for i in range(100_000)]
    net = nn.Linear(2, 2)
    with pytest.warns(fastadv.ExecutionWarning, match="list holds more than 2,000 objects"):
        assert reach.modules_behind([data, net]) == [net]  # the nearest first, not all of them


def test_plain_data_does_not_count():
    net = nn.Linear(2, 2)
    data = [(f"{i}.png", i) for i in range(2_500)]
    assert reach.modules_behind(Holder([data, [{"i": i} for i in range(2_500)], [net]])) == [net]


def test_a_model_that_holds_too_much_is_told_of_once():
    net = nn.Linear(2, 2)
    model = Holder([[[[i]] for i in range(2_500)], [[net]]])
    with pytest.warns(fastadv.ExecutionWarning, match="Holder holds .*nn.ModuleList") as caught:
        assert reach.modules_behind(model) == reach.modules_behind(model.method) == []
    assert len(caught) == 1


def test_it_is_followed_six_deep():
    net = nn.Linear(2, 2)
    held = net
    for depth in range(1, 8):
        held = [held]
        assert reach.modules_behind(held) == ([net] if depth <= 6 else [])


def test_buffers_and_parameters_of_several_modules_have_names_of_their_own():
    nets = [nn.BatchNorm1d(2), nn.BatchNorm1d(2)]
    assert reach.named_buffers(nets[0]) == dict(nets[0].named_buffers())
    buffers, parameters = reach.named_buffers(nets), reach.named_parameters(nets)
    assert [id(b) for b in buffers.values()] == [id(b) for net in nets for b in net.buffers()]
    assert [id(p) for p in parameters.values()] == [id(p) for net in nets for p in net.parameters()]
    assert list(parameters) == ["weight", "bias", "1: weight", "1: bias"]
