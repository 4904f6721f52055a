"""Steps recorded once and replayed: the same bits as eager ones; on a CPU by a stand-in for CUDA.

The tape has the semantics of CUDA graphs: recorded by address, Python values baked in, refused
where the host is needed. See tests/graphs/tape.py.
"""

import gc
import sys
import warnings
import weakref
from pathlib import Path

import pytest
import torch
from members import MEMBERS, custom_ensemble, member, member_problem
from torch import nn
from toy_models import NORMS, differing_fields, mixed_problem, threat_of

import fastadv
from fastadv.attacks.call import preparation
from fastadv.diagnostics import ExecutionWarning
from fastadv.engine import stepping

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "graphs"))

from tape import Tape  # noqa: E402


@pytest.fixture
def tapes(monkeypatch):
    """The backends that were made, in place of CUDA's."""
    made = []

    def backend_for(device, cuda_graph):
        if cuda_graph is False:
            return None
        made.append(Tape())
        return made[-1]

    monkeypatch.setattr(preparation, "backend_for", backend_for)
    yield made
    preparation.release()


def _run(attack, problem, model=None, *, graph="auto", **execution):
    return attack.run(
        model or problem.model,
        problem.x,
        problem.y,
        execution=fastadv.Execution(cuda_graph=graph, **execution),
    )


_PGD = {
    "pgd": lambda threat: fastadv.pgd(threat, steps=8, restarts=2),
    "best": lambda threat: fastadv.pgd(threat, steps=8, keep="best"),
    "last": lambda threat: fastadv.pgd(threat, steps=8, keep="last"),
    "eot": lambda threat: fastadv.pgd(threat, steps=8, eot=2),
    "momentum": lambda threat: fastadv.mifgsm(threat, steps=8),
    "callable loss": lambda threat: fastadv.pgd(threat, steps=8, loss=_negative_logit),
}


def _negative_logit(logits, y):
    return -logits.gather(1, y[:, None])[:, 0]


@pytest.mark.parametrize("batching", ["continuous", "plain"])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", _PGD)
def test_the_pgd_family_gives_the_same_bits(tapes, name, norm, batching):
    problem = mixed_problem(24)
    attack = _PGD[name](threat_of(norm))
    for size in (16, 7):  # 24 samples: the last batch is an odd one
        eager = _run(attack, problem, graph=False, batching=batching, batch_size=size)
        for _ in range(2):
            replayed = _run(attack, problem, batching=batching, batch_size=size)
            assert differing_fields(eager, replayed) == []
    assert tapes[0].captured > 0 and tapes[0].replayed > tapes[0].captured


@pytest.mark.parametrize("batching", ["continuous", "plain"])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", MEMBERS)
def test_the_attacks_of_autoattack_give_the_same_bits(tapes, name, norm, batching):
    problem = member_problem(24)
    attack = member(name, norm)
    eager = _run(attack, problem, graph=False, batching=batching, batch_size=9)
    for _ in range(2):
        replayed = _run(attack, problem, batching=batching, batch_size=9)
        assert differing_fields(eager, replayed) == []
    assert tapes[0].replayed > 0


def test_an_ensemble_gives_the_same_bits(tapes):
    problem = member_problem(24)
    attack = custom_ensemble("linf")
    eager = _run(attack, problem, graph=False, batch_size=9)
    replayed = _run(attack, problem, batch_size=9)
    assert differing_fields(eager, replayed) == []
    assert torch.equal(eager.broken_by, replayed.broken_by)


def test_passes_are_counted_as_the_model_makes_them(tapes):
    """Of as many slots: all are filled, and none is idle before the last round."""
    problem = mixed_problem(16)
    attack = fastadv.pgd(threat_of("linf"), steps=12, keep="last")
    eager = _run(attack, problem, graph=False, batch_size=8)
    replayed = _run(attack, problem, batch_size=8)
    assert tapes[0].replayed > 0
    assert (eager.forwards, eager.backwards) == (replayed.forwards, replayed.backwards)
    assert eager.forwards == 16 * 12 + 16


def test_one_recording_serves_every_later_call(tapes):
    problem = mixed_problem(40)
    attack = fastadv.pgd(threat_of("linf"), steps=8, restarts=2)
    recorded = []
    for _ in range(4):
        for n in (40, 39, 17):
            x, y = problem.x[:n], problem.y[:n]
            attack.run(problem.model, x, y, execution=fastadv.Execution(batch_size=8))
        recorded.append(tapes[0].captured)
    # 8, 4, 2 and 1 slots, with and without the look at the first gradient
    assert recorded[-1] <= 8
    assert recorded[1:] == recorded[1:2] * 3


def test_weights_changed_in_place_are_seen(tapes):
    problem = mixed_problem(40)
    attack = fastadv.pgd(threat_of("linf"), steps=8)
    before = _run(attack, problem, batch_size=8)
    recorded = tapes[0].captured
    with torch.no_grad():
        for p in problem.model.parameters():
            p.mul_(-0.7)
    eager = _run(attack, problem, graph=False, batch_size=8)
    replayed = _run(attack, problem, batch_size=8)
    assert differing_fields(eager, replayed) == []
    assert differing_fields(before, replayed) != []
    assert tapes[0].captured == recorded


def test_weights_put_elsewhere_are_recorded_anew(tapes):
    problem = mixed_problem(40)
    attack = fastadv.pgd(threat_of("linf"), steps=8)
    _run(attack, problem, batch_size=8)
    problem.model.weight = nn.Parameter(-problem.model.weight.detach().clone())
    eager = _run(attack, problem, graph=False, batch_size=8)
    assert differing_fields(eager, _run(attack, problem, batch_size=8)) == []
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
    _run(attack, problem, model, batch_size=8)
    model.factor = -2.0
    eager = _run(attack, problem, model, graph=False, batch_size=8)
    assert differing_fields(eager, _run(attack, problem, model, batch_size=8)) == []


class Synchronising(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x) * (2.0 if x.mean().item() > -1 else 1.0)


def test_a_model_that_synchronises_is_attacked_eagerly_and_told_once(tapes):
    problem = mixed_problem(40)
    model = Synchronising(problem.model)
    attack = fastadv.pgd(threat_of("linf"), steps=8)
    eager = _run(attack, problem, model, graph=False, batch_size=8)
    with pytest.warns(ExecutionWarning, match=r"not captured, because .*item\(\)") as caught:
        got = _run(attack, problem, model, batch_size=8)
    assert len(caught) == 1
    assert differing_fields(eager, got) == []
    assert (got.forwards, got.backwards) == (eager.forwards, eager.backwards)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert differing_fields(eager, _run(attack, problem, model, batch_size=8)) == []


def test_where_a_graph_is_required_a_refusal_is_an_error(tapes):
    problem = mixed_problem(40)
    with pytest.raises(RuntimeError, match="not captured, because"):
        _run(
            fastadv.pgd(threat_of("linf"), steps=8),
            problem,
            Synchronising(problem.model),
            graph=True,
            batch_size=8,
        )


def test_required_on_a_cpu_is_refused_in_words():
    with pytest.raises(ValueError, match="cuda_graph=True needs tensors on a CUDA device"):
        _run(fastadv.pgd(threat_of("linf"), steps=2), mixed_problem(4), graph=True)


def test_what_is_kept_goes_with_the_model_and_on_release(tapes):
    problem = mixed_problem(16)
    attack = fastadv.apgd_ce(threat_of("linf"), steps=8)
    _run(attack, problem, batch_size=8)
    assert len(preparation._KEPT) == 1
    fastadv.release()
    assert len(preparation._KEPT) == 0 and tapes[0].released == 1
    _run(attack, problem, batch_size=8)
    _run(attack, problem, batch_size=8, precision="bf16")
    model = weakref.ref(problem.model)
    del problem
    gc.collect()
    assert model() is None and len(preparation._KEPT) == 0


def test_of_a_plain_function_nothing_is_kept(tapes):
    problem = mixed_problem(16)
    attack = fastadv.pgd(threat_of("linf"), steps=8)
    factor = 1.0

    def model(x):
        return problem.model(x) * factor

    _run(attack, problem, model, batch_size=8)
    factor = -2.0
    eager = _run(attack, problem, model, graph=False, batch_size=8)
    assert differing_fields(eager, _run(attack, problem, model, batch_size=8)) == []


def test_what_a_callable_loss_closes_over_may_change(tapes):
    problem = mixed_problem(16)
    factor = 1.0

    def loss(logits, y):
        return factor * logits.gather(1, y[:, None])[:, 0]

    attack = fastadv.pgd(threat_of("linf"), steps=8, loss=loss)
    _run(attack, problem, batch_size=8)
    factor = -1.0
    eager = _run(attack, problem, graph=False, batch_size=8)
    assert differing_fields(eager, _run(attack, problem, batch_size=8)) == []


def test_radii_of_their_own_follow_their_samples(tapes):
    problem = mixed_problem(16)
    eps = torch.linspace(0.0, 0.1, 16)
    for _ in range(2):
        attack = fastadv.pgd(fastadv.Linf(eps), steps=8)
        eager = _run(attack, problem, graph=False, batch_size=8)
        assert differing_fields(eager, _run(attack, problem, batch_size=8)) == []
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
    _run(attack, problem, model, batch_size=8, precision=precision)
    change(model.holder)
    kept = _run(attack, problem, model, batch_size=8, precision=precision)
    fastadv.release()
    fresh = _run(attack, problem, model, graph=False, batch_size=8, precision=precision)
    assert differing_fields(fresh, kept) == []


def test_a_function_and_a_hook_that_are_exchanged_are_seen(tapes):
    problem = mixed_problem(40)
    model = Configured(problem.model, None, lambda holder: 1.0)
    attack = fastadv.pgd(threat_of("linf"), steps=8)
    _run(attack, problem, model, batch_size=8)
    model.get = lambda holder: -2.0
    eager = _run(attack, problem, model, graph=False, batch_size=8)
    assert differing_fields(eager, _run(attack, problem, model, batch_size=8)) == []
    handle = model.register_forward_hook(lambda module, args, output: output * 1.0)
    _run(attack, problem, model, batch_size=8)
    handle.remove()
    model.register_forward_hook(lambda module, args, output: output * -1.0)
    eager = _run(attack, problem, model, graph=False, batch_size=8)
    assert differing_fields(eager, _run(attack, problem, model, batch_size=8)) == []


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
        _run(attack, problem, model, batch_size=8)
    recorded = tapes[0].captured
    eager = _run(attack, problem, model, graph=False, batch_size=8)
    assert differing_fields(eager, _run(attack, problem, model, batch_size=8)) == []
    assert tapes[0].captured == recorded and tapes[0].released == 0


class Sparse(nn.Module):
    """A buffer that has no address."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.register_buffer("mixing", torch.eye(5).to_sparse())

    def forward(self, x):
        return torch.sparse.mm(self.mixing, self.model(x).t()).t()


def test_tensors_without_an_address_are_no_obstacle(tapes):
    problem = mixed_problem(16)
    attack = fastadv.pgd(threat_of("linf"), steps=4)
    model = Sparse(problem.model)
    eager = _run(attack, problem, model, graph=False, batch_size=8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExecutionWarning)  # the tape cannot record them
        assert torch.equal(eager.success, _run(attack, problem, model, batch_size=8).success)


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
    _run(attack, problem, model, batch_size=8, precision=precision)
    with torch.no_grad():
        for p in problem.model.parameters():
            p.mul_(-0.7)
    kept = _run(attack, problem, model, batch_size=8, precision=precision)
    fastadv.release()
    fresh = _run(attack, problem, model, graph=False, batch_size=8, precision=precision)
    assert differing_fields(fresh, kept) == []


def test_the_watchdog_overlooks_warm_ups_and_recordings_but_no_replay(tapes, monkeypatch):
    noted = []

    class Dog(stepping.Watchdog):
        def note(self, since, *, slots, steps=1):
            noted.append(self.moment().compiled != since.compiled)

    monkeypatch.setattr(stepping, "Watchdog", Dog)
    _run(fastadv.pgd(threat_of("linf", 1e-4), steps=8), mixed_problem(8), batching="plain")
    (tape,) = tapes
    assert tape.captured > 0 and len(noted) == 8
    assert sum(noted) == tape.warmed + tape.captured < 8 and noted[0]
