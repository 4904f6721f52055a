"""The look for clamps: no false alarm, no pass too many, no trace, one warning."""

import warnings

import pytest
import torch
from clamping_problems import (
    Behind,
    Clamp,
    counted_warnings,
    loses_gradient,
    make_step,
    pair_of,
    problems,
)
from torch import nn
from training_problems import (
    CLASSES,
    METHODS,
    THREAT,
    batches,
    conv_net,
    sgd,
    trace_of,
    train_batch,
)

from benchmarks.clamping.rules import clamp_rule
from benchmarks.harness.tally import Tally
from benchmarks.training.work_units import WorkUnits, count_units
from fastadv import training
from fastadv.diagnostics import AttackWarning
from fastadv.oracle import clamping
from fastadv.training import GradAlign


class _Cropped(nn.Module):
    """Does not look at a border, as wide on each side as `pads` says."""

    def __init__(self, *pads):
        super().__init__()
        self.pads = pads

    def forward(self, x):
        left, right, top, bottom = self.pads
        seen = x[..., top : x.shape[-2] - bottom, left : x.shape[-1] - right]
        return nn.functional.pad(seen, self.pads, value=0.5)


def _blind_net():
    """Fully connected; of 10 of 64 pixels the first layer's weights are zero."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, CLASSES))
    with torch.no_grad():
        net[1].weight[:, torch.randperm(64)[:10]] = 0.0
    return net.double()


_PLAIN = {
    "plain": lambda: Behind(nn.Identity(), conv_net(bn=True, dtype=torch.float64)),
    "kept": lambda: Behind(Clamp("number"), conv_net(bn=True, dtype=torch.float64)),
    "border": lambda: Behind(_Cropped(1, 1, 1, 1), conv_net(bn=True, dtype=torch.float64)),
    "unseen bounds": lambda: Behind(_Cropped(4, 0, 0, 0), conv_net(dtype=torch.float64)),
    "blind pixels": lambda: Behind(nn.Identity(), _blind_net()),
    "no pixel at a bound": lambda: Behind(Clamp("hardtanh"), conv_net(dtype=torch.float64)),
}


def _count(model):
    """(rows of each forward of `model`, rows of each backward through its first module)."""
    forwards, backwards = [], []

    def note(module, args, output):
        forwards.append(len(output))
        if output.requires_grad:
            output.register_hook(lambda grad: backwards.append(len(grad)))

    model.first.register_forward_hook(note)
    return forwards, backwards


@pytest.mark.parametrize("case", _PLAIN)
@pytest.mark.parametrize("name", [*METHODS, "GradAlign"])
def test_where_nothing_is_lost_there_is_no_alarm_and_no_pass_more(name, case, monkeypatch):
    monkeypatch.setattr(clamping, "lost_at_bounds", lambda *_: pytest.fail("a second look"))
    settings = {"modifiers": [GradAlign()]} if name == "GradAlign" else {}
    name = "FastAT" if name == "GradAlign" else name
    first = "net.1" if case == "blind pixels" else "net.0"
    settings |= {"first_layer": first} if name == "YOPO" else {}
    counts = []
    for watched in (True, False):
        net = _PLAIN[case]()
        step, optimizer = make_step(name, net, **settings), sgd(net)
        forwards, backwards = _count(net)
        if not watched:
            step._watch.close()
        with clamp_rule("old"), counted_warnings() as warned:
            for x, y, more in problems(name, 3):
                if case in ("no pixel at a bound", "unseen bounds"):
                    x, more = x * 0.4 + 0.3, {}
                if case == "unseen bounds":  # whose gradient is lost, as is half of that inside
                    x[..., 0] = 0.0
                train_batch(step, net, optimizer, x, y, **more)
        assert not warned and step._watch.inset == 0.0
        counts.append((forwards, backwards))
    (mine, my_backwards), (theirs, their_backwards) = counts
    assert mine == theirs
    # the check of FreeAT goes backward too, once
    more = name == "FreeAT" and case != "no pixel at a bound"
    assert len(my_backwards) - len(their_backwards) == more


def test_a_few_pixels_that_the_model_does_not_see_are_no_clamp():
    """All entries at 1 may be among them: the second look, and not the first, tells."""
    net, looks = conv_net(dtype=torch.float64), []
    x, y, _ = problems("PGDAT", 1)[0]
    x = torch.where(x == 1, 0.9, x)
    x[:, 0, 0, :2] = 1.0
    seen = torch.ones_like(x[0])
    seen[0, 0, :2] = 0.0

    class Masked(nn.Module):
        def forward(self, x):
            return net(x * seen)

    model = Masked()
    step = make_step("PGDAT", model, random_start=False)
    original, patch = clamping.lost_at_bounds, pytest.MonkeyPatch()
    patch.setattr(
        clamping, "lost_at_bounds", lambda *args: looks.append(original(*args)) or looks[-1]
    )
    with counted_warnings() as warned, patch.context():
        step.loss(model, x, y)
    patch.undo()
    assert looks == [0.0] and step._watch.inset == 0.0 and not warned


def test_without_bounds_there_is_nothing_to_look_at():
    import fastadv

    net, _ = pair_of("hardtanh")
    x, y, _ = problems("FastAT", 1)[0]
    for name in METHODS:
        more = {"first_layer": "net.0"} if name == "YOPO" else {}
        step = METHODS[name](fastadv.Linf(0.1, bounds=None), **more)
        for loss in step(net, x, y):
            loss.backward()
        assert not step._watch.is_open and not step._watch.inset


@pytest.mark.parametrize(
    ("step", "units"),
    [
        (training.FastAT(THREAT, clamp_start=True), WorkUnits(2, 2, 1)),
        (training.PGDAT(THREAT, steps=10), WorkUnits(11, 11, 1)),
        (training.TRADES(THREAT, steps=10), WorkUnits(13, 12, 2)),
        (training.MART(THREAT, steps=10), WorkUnits(12, 12, 2)),
        (training.YOPO(THREAT, first_layer="net.0", outer=5, inner=3), WorkUnits(5, 5, 5)),
        (training.FreeAT(THREAT, replays=4), WorkUnits(8, 8, 4)),
        (
            training.FreeAT(THREAT, replays=1, modifiers=[training.CleanMixing()]),
            WorkUnits(4, 3, 2),
        ),
    ],
    ids=repr,
)
def test_where_the_model_clamps_free_training_alone_costs_more(step, units):
    model = Behind(Clamp("hardtanh"), conv_net(bn=True))
    optimizer = sgd(model)
    (x0, y0), (x, y) = batches(2, size=4)
    with counted_warnings():
        train_batch(step, model, optimizer, x0, y0)
    assert step._watch.inset > 0
    assert count_units(lambda: train_batch(step, model, optimizer, x, y), model) == units


def test_the_pass_that_free_training_adds_has_frozen_weights():
    """A compiled backward would compute their gradients otherwise."""
    net, _ = pair_of("hardtanh")
    step, optimizer, frozen = make_step("FreeAT", net, replays=2), sgd(net), []
    layer = net.net[0]
    (x0, y0, _), (x, y, _) = problems("FreeAT", 2)
    with counted_warnings():
        train_batch(step, net, optimizer, x0, y0)
    layer.register_forward_hook(lambda *_: frozen.append(not layer.weight.requires_grad))
    train_batch(step, net, optimizer, x, y)
    assert frozen == [True, False] * 2


@pytest.mark.parametrize("name", METHODS)
def test_no_batch_after_the_first_reads_a_result(name):
    model, _ = pair_of("hardtanh")
    step, optimizer = make_step(name, model), sgd(model)
    data = problems(name, 3)
    with counted_warnings():
        for x, y, more in data[:2]:
            train_batch(step, model, optimizer, x, y, **more)
    x, y, more = data[2]
    with Tally() as tally:
        train_batch(step, model, optimizer, x, y, **more)
    assert tally.data_dependent == 0 and step._watch.inset > 0, tally.names


@pytest.mark.parametrize("name", METHODS)
def test_each_step_object_warns_once(name):
    model, _ = pair_of("hardtanh")
    for _ in range(2):
        step, optimizer = make_step(name, model), sgd(model)
        with counted_warnings() as warned:
            for x, y, more in problems(name, 4):
                train_batch(step, model, optimizer, x, y, **more)
        assert [(w.code, w.count) for w in warned] == [("clamped_input", 16)]


def test_a_warning_that_is_an_error_leaves_all_as_it_was_and_the_next_batch_is_right():
    model, bare = pair_of("hardtanh")
    x, y, _ = problems("PGDAT", 1)[0]
    step, before = make_step("PGDAT", model), trace_of(model)
    with warnings.catch_warnings(), pytest.raises(AttackWarning, match="clamped_input: 16 of 16"):
        warnings.simplefilter("error")
        step.loss(model, x, y)
    assert trace_of(model) == before and step.batches == 0
    crafted = step.craft(model, x, y)
    assert torch.equal(crafted.x_adv, make_step("PGDAT", bare).craft(bare, x, y).x_adv)


@pytest.mark.parametrize("kind", ["number", "tensors", "hardtanh"])
def test_a_network_trained_under_the_rule_of_the_installed_torch_is_seen_as_it_is(kind):
    """No emulation: whatever torch does, the first batch tells."""
    net, bare = pair_of(kind)
    leaf = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(net.first(leaf).sum(), leaf)
    step, twin = make_step("PGDAT", net), make_step("PGDAT", bare)
    x, y, _ = problems("PGDAT", 1)[0]
    with counted_warnings() as warned:
        mine = step.craft(net, x, y).x_adv
    assert len(warned) == (float(grad) == 0) and torch.equal(mine, twin.craft(bare, x, y).x_adv)
    assert loses_gradient(kind, "new") or not warned
