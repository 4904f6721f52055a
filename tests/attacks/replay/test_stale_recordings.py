"""What a recording relies on may change between calls: weights, attributes, functions, radii."""

import pytest
import torch
from recorded import run
from torch import nn
from toy_models import differing_fields, mixed_problem, threat_of

import fastadv


def test_weights_changed_in_place_are_seen(tapes):
    problem = mixed_problem(40)
    attack = fastadv.pgd(threat_of("linf"), steps=8)
    before = run(attack, problem, batch_size=8)
    recorded = tapes[0].captured
    with torch.no_grad():
        for p in problem.model.parameters():
            p.mul_(-0.7)
    eager = run(attack, problem, graph=False, batch_size=8)
    replayed = run(attack, problem, batch_size=8)
    assert differing_fields(eager, replayed) == []
    assert differing_fields(before, replayed) != []
    assert tapes[0].captured == recorded


def test_weights_put_elsewhere_are_recorded_anew(tapes):
    problem = mixed_problem(40)
    attack = fastadv.pgd(threat_of("linf"), steps=8)
    run(attack, problem, batch_size=8)
    problem.model.weight = nn.Parameter(-problem.model.weight.detach().clone())
    eager = run(attack, problem, graph=False, batch_size=8)
    assert differing_fields(eager, run(attack, problem, batch_size=8)) == []
    assert tapes[0].released == 1


class Scaled(nn.Module):
    """A plain number in a module is baked into a recording."""

    def __init__(self, model):
        super().__init__()
        self.model, self.factor = model, 1.0

    def forward(self, x):
        return self.model(x) * self.factor


def test_a_plain_attribute_that_changed_is_seen(tapes):
    problem = mixed_problem(40)
    model = Scaled(problem.model)
    attack = fastadv.pgd(threat_of("linf"), steps=8)
    run(attack, problem, model, batch_size=8)
    model.factor = -2.0
    eager = run(attack, problem, model, graph=False, batch_size=8)
    assert differing_fields(eager, run(attack, problem, model, batch_size=8)) == []


def test_of_a_plain_function_nothing_is_kept(tapes):
    problem = mixed_problem(16)
    attack = fastadv.pgd(threat_of("linf"), steps=8)
    factor = 1.0

    def model(x):
        return problem.model(x) * factor

    run(attack, problem, model, batch_size=8)
    factor = -2.0
    eager = run(attack, problem, model, graph=False, batch_size=8)
    assert differing_fields(eager, run(attack, problem, model, batch_size=8)) == []


def test_what_a_callable_loss_closes_over_may_change(tapes):
    problem = mixed_problem(16)
    factor = 1.0

    def loss(logits, y):
        return factor * logits.gather(1, y[:, None])[:, 0]

    attack = fastadv.pgd(threat_of("linf"), steps=8, loss=loss)
    run(attack, problem, batch_size=8)
    factor = -1.0
    eager = run(attack, problem, graph=False, batch_size=8)
    assert differing_fields(eager, run(attack, problem, batch_size=8)) == []


def test_radii_of_their_own_follow_their_samples(tapes):
    problem = mixed_problem(16)
    eps = torch.linspace(0.0, 0.1, 16)
    for _ in range(2):
        attack = fastadv.pgd(fastadv.Linf(eps), steps=8)
        eager = run(attack, problem, graph=False, batch_size=8)
        assert differing_fields(eager, run(attack, problem, batch_size=8)) == []
        eps = eps.flip(0)


class Configured(nn.Module):
    """What it multiplies its logits by lies in an attribute of its own making."""

    def __init__(self, model, holder, get):
        super().__init__()
        self.model, self.holder, self.get = model, holder, get

    def forward(self, x):
        return self.model(x) * self.get(self.holder)


class _Slot:
    def __init__(self, value):
        self.value = value


_HOLDERS = {
    "dict": (lambda: {"t": 1.0}, lambda h: h["t"], lambda h: h.update(t=-2.0)),
    "list": (lambda: [1.0], lambda h: h[0], lambda h: h.__setitem__(0, -2.0)),
    "object": (lambda: _Slot(1.0), lambda h: h.value, lambda h: setattr(h, "value", -2.0)),
    "nested": (
        lambda: {"a": [_Slot(1.0)]},
        lambda h: h["a"][0].value,
        lambda h: setattr(h["a"][0], "value", -2.0),
    ),
}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("holder", _HOLDERS)
def test_what_attributes_hold_may_change(tapes, holder, precision):
    """For recordings, and for shadow copies."""
    make, get, change = _HOLDERS[holder]
    problem = mixed_problem(40)
    model = Configured(problem.model, make(), get)
    attack = fastadv.pgd(threat_of("linf"), steps=8)
    run(attack, problem, model, batch_size=8, precision=precision)
    change(model.holder)
    kept = run(attack, problem, model, batch_size=8, precision=precision)
    fastadv.release()
    fresh = run(attack, problem, model, graph=False, batch_size=8, precision=precision)
    assert differing_fields(fresh, kept) == []


def test_a_function_and_a_hook_that_are_exchanged_are_seen(tapes):
    problem = mixed_problem(40)
    model = Configured(problem.model, None, lambda holder: 1.0)
    attack = fastadv.pgd(threat_of("linf"), steps=8)
    run(attack, problem, model, batch_size=8)
    model.get = lambda holder: -2.0
    eager = run(attack, problem, model, graph=False, batch_size=8)
    assert differing_fields(eager, run(attack, problem, model, batch_size=8)) == []
    handle = model.register_forward_hook(lambda module, args, output: output * 1.0)
    run(attack, problem, model, batch_size=8)
    handle.remove()
    model.register_forward_hook(lambda module, args, output: output * -1.0)
    eager = run(attack, problem, model, graph=False, batch_size=8)
    assert differing_fields(eager, run(attack, problem, model, batch_size=8)) == []


class Counted(nn.Module):
    """Changes itself at every call."""

    def __init__(self, model):
        super().__init__()
        self.model, self.calls = model, 0

    def forward(self, x):
        self.calls += 1
        self.kept = x.detach()
        return self.model(x)


def test_what_passes_change_themselves_is_no_reason_to_record_anew(tapes):
    problem = mixed_problem(16)
    model = Counted(problem.model)
    attack = fastadv.pgd(threat_of("linf"), steps=12, keep="last")
    for _ in range(3):
        run(attack, problem, model, batch_size=8)
    recorded = tapes[0].captured
    eager = run(attack, problem, model, graph=False, batch_size=8)
    assert differing_fields(eager, run(attack, problem, model, batch_size=8)) == []
    assert tapes[0].captured == recorded and tapes[0].released == 0


class Listed(nn.Module):
    """Holds its network where nn.Module does not look."""

    def __init__(self, model):
        super().__init__()
        self.nets = [model]

    def forward(self, x):
        return self.nets[0](x)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_weights_in_a_list_are_seen_when_they_change(tapes, precision):
    problem = mixed_problem(40)
    model = Listed(problem.model)
    attack = fastadv.pgd(threat_of("linf"), steps=8)
    run(attack, problem, model, batch_size=8, precision=precision)
    with torch.no_grad():
        for p in problem.model.parameters():
            p.mul_(-0.7)
    kept = run(attack, problem, model, batch_size=8, precision=precision)
    fastadv.release()
    fresh = run(attack, problem, model, graph=False, batch_size=8, precision=precision)
    assert differing_fields(fresh, kept) == []
