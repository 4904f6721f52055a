"""Recorded steps of networks that clamp equal the eager ones, which equal the bare network's."""

import copy

import pytest
import torch
from clamping_problems import Behind, Clamp, counted_warnings, first_layer_of
from graphed_pair import Pair
from torch import nn
from training_problems import METHODS, THREAT, batches, conv_net

from benchmarks.clamping.rules import RULES, clamp_rule
from fastadv import training
from fastadv.training import GradAlign


def _net():
    return Behind(Clamp("hardtanh"), conv_net(bn=True))


def _make(name, **settings):
    if name == "YOPO":
        settings |= {"first_layer": first_layer_of(_net())}
    return METHODS[name](THREAT, **settings)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", METHODS)
def test_replayed_steps_equal_the_eager_loop_bit_for_bit(tape, name, rule):
    settings = {"clamp_start": True} if name in ("FastAT", "NFGSM", "PGDAT") else {}
    pair = Pair(lambda: _make(name, **settings), net=Behind(Clamp("number"), conv_net(bn=True)))
    with clamp_rule(rule), counted_warnings() as warned:
        pair.train(batches(7))
    assert pair.run.replays == 4
    # the eager step's and the recorded one's
    assert len(warned) == 2 * (rule == "new") == 2 * (pair.step._watch.inset > 0)
    assert pair.step._watch.inset == pair.eager_step._watch.inset


@pytest.mark.parametrize("name", ["FastAT", "FreeAT"])
def test_aligned_gradients_are_recorded_at_points_inside(tape, name):
    pair = Pair(lambda: _make(name, modifiers=[GradAlign()]), net=_net())
    with counted_warnings() as warned:
        pair.train(batches(6))
    assert pair.run.replays == 3 and len(warned) == 2


def test_replays_are_those_of_the_bare_network(tape):
    """In float64, where no rounding decides a sign."""
    nets = []
    for first in (Clamp("hardtanh"), nn.Identity()):
        net = Behind(first, conv_net(bn=True, dtype=torch.float64))
        pair = Pair(lambda: training.PGDAT(THREAT, steps=3), net=net)
        with counted_warnings():
            pair.train([(x.double(), y) for x, y in batches(7)])
        assert pair.run.replays == 4
        nets.append(torch.cat([p.detach().flatten() for p in pair.net.parameters()]))
    assert torch.equal(*nets)


def test_a_resumed_run_gives_the_same_bits(tape):
    data = batches(10)
    pair, resumed = (Pair(lambda: _make("PGDAT"), net=_net()) for _ in range(2))
    with counted_warnings():
        pair.train(data[:5])
    for net in (resumed.net, resumed.eager):
        net.load_state_dict(pair.net.state_dict())
    for step in (resumed.step, resumed.eager_step):
        step.load_state_dict(copy.deepcopy(pair.step.state_dict()))
    for o in (resumed.optimizer, resumed.eager_optimizer):
        o.load_state_dict(copy.deepcopy(pair.optimizer.state_dict()))
    pair.train(data[5:])  # no warning, which would be an error
    resumed.train(data[5:])
    assert torch.equal(resumed.net.net[0].weight, pair.net.net[0].weight)


def test_a_state_that_decided_otherwise_is_recorded_anew(tape):
    pair = Pair(lambda: _make("PGDAT"), net=_net())
    with counted_warnings():
        pair.train(batches(5))
    assert tape.captured == 1
    for step in (pair.step, pair.eager_step):
        step.load_state_dict({**step.state_dict(), "inset": 0.0})
    pair.train(batches(5, seed=2))
    assert tape.captured == 2


def test_a_batch_that_is_looked_at_is_not_recorded(tape):
    """A state without a decision, loaded into a step that has recordings."""
    pair = Pair(lambda: _make("PGDAT"), net=_net())
    with counted_warnings() as warned:
        pair.train(batches(5))
        for step in (pair.step, pair.eager_step):
            state = step.state_dict()
            del state["inset"]
            step.load_state_dict(state)
        pair.train(batches(3, seed=2))
    assert tape.captured == 1 and pair.run.replays == 4 and len(warned) == 4
