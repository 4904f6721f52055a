"""Section A, isolation: ensembles in lists and the like are isolated as registered modules are."""

import functools
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from toy_models import differing_fields, same_bits
from traces import images, process_state, short_attack, trace_of, training_net

import fastadv
from fastadv import training
from fastadv.attacks.call import preparation
from fastadv.graphs.facts import module_facts

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "graphs"))

from tape import Tape  # noqa: E402


def nets():
    """Two networks of the same weights, in train mode, with batch norm and dropout, one frozen."""
    first, second = training_net(), training_net()
    second[6].weight.requires_grad_(False)
    return [first, second]


class Registered(nn.Module):
    """The same as an ensemble that torch knows of: what is right."""

    def __init__(self, members):
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x):
        return mean_of(self.members, x)


class InAList(nn.Module):
    def __init__(self, members):
        super().__init__()
        self.members = list(members)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.scale * mean_of(self.members, x)


class Calling:
    def __init__(self, members):
        self.members = {"all": tuple(members)}

    def __call__(self, x):
        return mean_of(self.members["all"], x)


def mean_of(members, x):
    return sum(member(x) for member in members) / len(members)


def in_a_circle(members):
    model = Calling(members)
    model.members["self"] = model
    return model


WAYS = {
    "lambda over a list": lambda members: lambda x: mean_of(members, x),
    "partial": lambda members: functools.partial(mean_of, members),
    "class with __call__": Calling,
    "bound method": lambda members: Calling(members).__call__,
    "module with a list": InAList,
    "circle": in_a_circle,
}


def of_all(members):
    return [trace_of(net) for net in members]


@pytest.mark.parametrize("keep", ["first_success", "last"])
@pytest.mark.parametrize("way", WAYS)
def test_no_statistics_move_and_dropout_is_off(way, keep):
    x, y = images()
    expected = short_attack(keep=keep).run(Registered(nets()), x, y)
    members = nets()
    before, process = of_all(members), process_state()
    assert differing_fields(short_attack(keep=keep).run(WAYS[way](members), x, y), expected) == []
    assert of_all(members) == before and process_state() == process


@pytest.mark.parametrize(
    ("error", "way"), [*((KeyError, way) for way in WAYS), (KeyboardInterrupt, "partial")]
)
def test_flags_are_put_back_after_an_error(error, way):
    calls = []

    def failing(module, args):
        calls.append((module.training, module.weight.requires_grad))
        if len(calls) == 3:
            raise error

    members = nets()
    members[1][6].register_forward_pre_hook(failing)
    before = of_all(members)
    with pytest.raises(error):
        short_attack().run(WAYS[way](members), *images())
    assert calls == [(False, False)] * 3
    assert of_all(members) == before


@pytest.mark.parametrize("way", WAYS)
def test_evaluation_and_normalisation(way):
    x, y = images()
    made = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    expected = fastadv.evaluate(
        fastadv.Normalized(Registered(nets()), **made), (x, y), short_attack()
    )
    members = nets()
    before = of_all(members)
    found = fastadv.evaluate(fastadv.Normalized(WAYS[way](members), **made), (x, y), short_attack())
    assert (found.robust_accuracy, found.clean_accuracy, found.forwards) == (
        expected.robust_accuracy,
        expected.clean_accuracy,
        expected.forwards,
    )
    assert of_all(members) == before


@pytest.mark.parametrize("bn", ["batch", "eval"])
@pytest.mark.parametrize("way", ["lambda over a list", "module with a list", "partial"])
def test_crafting_leaves_the_statistics_alone(way, bn):
    """As with a registered ensemble: the training pass moves them, crafting does not."""

    def stepped(make):
        members = nets()
        loss = training.PGDAT(fastadv.Linf(0.1), steps=2, bn=bn).loss(make(members), *images())
        loss.backward()
        return loss, members

    torch.manual_seed(3)
    expected, registered = stepped(Registered)
    torch.manual_seed(3)
    loss, members = stepped(WAYS[way])
    assert same_bits(loss.detach(), expected.detach())
    for net, other in zip(members, registered, strict=True):
        assert all(map(same_bits, net.buffers(), other.buffers()))
        assert int(net[3][1].num_batches_tracked) == 1
        assert all(m.training for m in net[4])


def test_a_normalised_module_with_a_list_registers_what_is_in_it_alone():
    members = nets()
    model = InAList(members)
    normalised = fastadv.Normalized(model, mean=(0.5,) * 3, std=(0.25,) * 3)
    assert list(normalised.behind) == members
    assert {id(p) for p in normalised.parameters()} == {
        id(p) for p in (model.scale, *members[0].parameters(), *members[1].parameters())
    }


@pytest.mark.parametrize(
    "hold",
    [
        lambda members: {"members": set(members)},
        lambda members: {"members": functools.partial(mean_of, members)},
        lambda members: {"members": Calling(members)},
    ],
    ids=["set", "partial", "object"],
)
def test_no_stale_copy_is_made_of_what_a_module_holds_besides(hold):
    """A copy would keep weights of its own that follow nobody's."""

    class Holding(nn.Module):
        def __init__(self, members):
            super().__init__()
            self.net = members[0]
            vars(self).update(hold(members[1:]))

        def forward(self, x):
            rest = self.members
            return self.net(x) + (rest(x) if callable(rest) else mean_of(rest, x))

    execution = fastadv.Execution(channels_last=True)
    with pytest.raises(ValueError, match="holds a module in a list or an object"):
        short_attack().run(Holding(nets()), *images(), execution=execution)


def test_what_a_recording_relies_on_tells_of_modules_in_a_partial():
    model, members = InAList(()), nets()
    model.members = functools.partial(mean_of, members)
    before = module_facts(model)
    assert module_facts(model) == before
    members[1][1].eps = 1.0
    assert module_facts(model) != before


class Counting(nn.Module):
    """Keeps what it has seen in a buffer, and returns its logits in a dict."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(48, 4))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen.add_(1)
        return {"logits": self.net(x)}


class Members(nn.Module):
    def __init__(self):
        super().__init__()
        self.members = [Counting(), Counting()]

    def forward(self, x):
        return {"logits": sum(member(x)["logits"] for member in self.members)}


def test_recorded_steps_know_of_the_buffers_of_every_member(monkeypatch):
    """A replay is held against the step itself, and the members' counts go on as without it."""
    tape = Tape()
    monkeypatch.setattr(preparation, "backend_for", lambda device, how: tape if how else None)
    x, y = images()
    attack = fastadv.pgd(fastadv.Linf(0.1), steps=8, keep="last")
    eager, replayed = Members(), Members()
    expected = attack.run(eager, x, y, execution=fastadv.Execution(cuda_graph=False))
    assert differing_fields(attack.run(replayed, x, y), expected) == []
    assert tape.captured > 0 and tape.replayed > 2
    assert [int(m.seen) for m in replayed.members] == [int(m.seen) for m in eager.members]
    preparation.release()
