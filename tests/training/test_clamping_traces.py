"""The look for clamps, and the passes that a clamp costs, leave no trace."""

import random

import pytest
import torch
from clamping_problems import Clamp, counted_warnings, make_step, pair_of, problems
from torch import nn
from training_problems import CRAFTED, METHODS, conv_net, sgd, trace_of, train_batch

from fastadv.oracle import clamping
from fastadv.training import GradAlign


def _traced_net(error: BaseException | None = None):
    """Clamps; frozen weights, a layer in eval mode, gradients already there, dropout; raises in
    the second look, if it is to."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = Clamp("hardtanh")
            self.noise = nn.Dropout(0.02)
            self.net = conv_net(bn=True, dropout=0.3, dtype=torch.float64)
            self.net[0].bias.requires_grad_(False)
            self.net[4].eval()
            self.net[3].weight.grad = torch.full_like(self.net[3].weight, 0.25)

        def forward(self, x):
            hidden = self.net[:4](self.noise(self.first(x)))
            if error is not None and looking:
                raise error
            return self.net[4:](hidden)

    looking = []
    return Net(), looking


def _process():
    return {
        "torch": torch.get_rng_state().tolist(),
        "python": random.getstate(),
        "grad": torch.is_grad_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
    }


@pytest.mark.parametrize("bn", ["batch", "eval"])
@pytest.mark.parametrize("name", CRAFTED)
def test_a_craft_with_a_second_look_leaves_no_trace(name, bn):
    net, _ = _traced_net()
    x, y, more = problems(name, 1)[0]
    before, process = trace_of(net), _process()
    step = make_step(name, net, bn=bn)
    with counted_warnings() as warned:
        step.craft(net, x, y, **more)
    assert len(warned) == 1 and (trace_of(net), _process()) == (before, process)
    step.craft(net, x, y, **more)
    assert (trace_of(net), _process()) == (before, process)


def _after_a_batch(name, kind, more_settings):
    """(buffers, random state) after two batches of a network with dropout."""
    clamping_net, bare = pair_of(kind, dropout=0.3)
    out = []
    for net in (clamping_net, bare):
        net = nn.Sequential(net.first, nn.Dropout(0.02), net.net)
        settings = {"first_layer": "2.0", **more_settings} if name == "YOPO" else more_settings
        step, optimizer = make_step(name, net, **settings), sgd(net)
        torch.manual_seed(5)
        with counted_warnings() as warned:
            for x, y, more in problems(name, 2):
                train_batch(step, net, optimizer, x, y, **more)
        assert len(warned) == (net[0] is clamping_net.first)
        tracked = [int(b) for n, b in net.named_buffers() if n.endswith("num_batches_tracked")]
        out.append((tracked, torch.get_rng_state().tolist()))
    return out


@pytest.mark.parametrize("name", [*METHODS, "GradAlign"])
def test_additional_passes_draw_nothing_and_move_no_statistics(name):
    settings = {"modifiers": [GradAlign()], "step_size": 0.0} if name == "GradAlign" else {}
    mine, theirs = _after_a_batch("FastAT" if settings else name, "hardtanh", settings)
    assert mine == theirs


@pytest.mark.parametrize("error", [RuntimeError("in the look"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("name", METHODS)
def test_a_second_look_that_fails_leaves_all_as_it_was(name, error, monkeypatch):
    net, looking = _traced_net(error)
    x, y, more = problems(name, 1)[0]
    settings = {"first_layer": "net.0"} if name == "YOPO" else {}
    step = make_step(name, net, **settings)
    original = clamping.lost_at_bounds

    def look(*args):
        looking.append(True)
        try:
            return original(*args)
        finally:
            looking.clear()

    monkeypatch.setattr(clamping, "lost_at_bounds", look)
    before, process = trace_of(net), _process()
    with pytest.raises(type(error)):
        list(step(net, x, y, **more))
    after = trace_of(net)
    if name == "YOPO":  # its first full pass is a training pass
        before.pop("buffers"), after.pop("buffers")
        process.pop("torch")
    assert after == before and {k: v for k, v in _process().items() if k in process} == process
    assert step.batches == 0 and step._watch.inset is None
    monkeypatch.setattr(clamping, "lost_at_bounds", original)
    with counted_warnings() as warned:
        for loss in step(net, x, y, **more):
            loss.backward()
    assert len(warned) == 1 and step._watch.inset > 0
