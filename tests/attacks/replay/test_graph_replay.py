"""Steps recorded once and replayed: the same bits as eager ones; on a CPU by a stand-in for CUDA.

The tape has the semantics of CUDA graphs: recorded by address, Python values baked in, refused
where the host is needed. See tests/graphs/tape.py.
"""

import functools
import gc
import warnings
import weakref

import pytest
import torch
from members import MEMBERS, custom_ensemble, member, member_problem
from recorded import run
from torch import nn
from toy_models import NORMS, differing_fields, mixed_problem, threat_of

import fastadv
from fastadv.attacks.call import preparation
from fastadv.diagnostics import ExecutionWarning
from fastadv.engine import stepping

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


def _schedules(names):
    """Continuous batches in every norm; the plain loop, which asks for nothing else, in one."""
    return [(name, norm, "continuous") for name in names for norm in NORMS] + [
        (name, NORMS[i % len(NORMS)], "plain") for i, name in enumerate(names)
    ]


@functools.cache
def _eager(name, norm):
    """No bit depends on the schedule or the batch size."""
    return run(_PGD[name](threat_of(norm)), mixed_problem(24), graph=False)


@pytest.mark.parametrize(("name", "norm", "batching"), _schedules(_PGD))
def test_the_pgd_family_gives_the_same_bits(tapes, name, norm, batching):
    problem, attack = mixed_problem(24), _PGD[name](threat_of(norm))
    for size in (16, 16, 7):  # 24 samples: the last batch is an odd one
        replayed = run(attack, problem, batching=batching, batch_size=size)
        assert differing_fields(_eager(name, norm), replayed) == []
    assert tapes[0].captured > 0 and tapes[0].replayed > tapes[0].captured


@pytest.mark.parametrize(("name", "norm", "batching"), _schedules(MEMBERS))
def test_the_attacks_of_autoattack_give_the_same_bits(tapes, name, norm, batching):
    problem, attack = member_problem(24), member(name, norm)
    eager = run(attack, problem, graph=False)
    for _ in range(2):
        replayed = run(attack, problem, batching=batching, batch_size=9)
        assert differing_fields(eager, replayed) == []
    assert tapes[0].replayed > 0


def test_an_ensemble_gives_the_same_bits(tapes):
    problem = member_problem(24)
    attack = custom_ensemble("linf")
    eager = run(attack, problem, graph=False, batch_size=9)
    replayed = run(attack, problem, batch_size=9)
    assert differing_fields(eager, replayed) == []
    assert torch.equal(eager.broken_by, replayed.broken_by)


def test_passes_are_counted_as_the_model_makes_them(tapes):
    """Of as many slots: all are filled, and none is idle before the last round."""
    problem = mixed_problem(16)
    attack = fastadv.pgd(threat_of("linf"), steps=12, keep="last")
    eager = run(attack, problem, graph=False, batch_size=8)
    replayed = run(attack, problem, batch_size=8)
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
    eager = run(attack, problem, model, graph=False, batch_size=8)
    with pytest.warns(ExecutionWarning, match=r"not captured, because .*item\(\)") as caught:
        got = run(attack, problem, model, batch_size=8)
    assert len(caught) == 1
    assert differing_fields(eager, got) == []
    assert (got.forwards, got.backwards) == (eager.forwards, eager.backwards)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert differing_fields(eager, run(attack, problem, model, batch_size=8)) == []


def test_where_a_graph_is_required_a_refusal_is_an_error(tapes):
    problem = mixed_problem(40)
    with pytest.raises(RuntimeError, match="not captured, because"):
        run(
            fastadv.pgd(threat_of("linf"), steps=8),
            problem,
            Synchronising(problem.model),
            graph=True,
            batch_size=8,
        )


def test_required_on_a_cpu_is_refused_in_words():
    with pytest.raises(ValueError, match="cuda_graph=True needs tensors on a CUDA device"):
        run(fastadv.pgd(threat_of("linf"), steps=2), mixed_problem(4), graph=True)


def test_what_is_kept_goes_with_the_model_and_on_release(tapes):
    problem = mixed_problem(16)
    attack = fastadv.apgd_ce(threat_of("linf"), steps=8)
    run(attack, problem, batch_size=8)
    assert len(preparation._KEPT) == 1
    fastadv.release()
    assert len(preparation._KEPT) == 0 and tapes[0].released == 1
    run(attack, problem, batch_size=8)
    run(attack, problem, batch_size=8, precision="bf16")
    model = weakref.ref(problem.model)
    del problem
    gc.collect()
    assert model() is None and len(preparation._KEPT) == 0


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
    eager = run(attack, problem, model, graph=False, batch_size=8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExecutionWarning)  # the tape cannot record them
        assert torch.equal(eager.success, run(attack, problem, model, batch_size=8).success)


def test_the_watchdog_overlooks_warm_ups_and_recordings_but_no_replay(tapes, monkeypatch):
    noted = []

    class Dog(stepping.Watchdog):
        def note(self, since, *, slots, steps=1):
            now = self.moment()
            noted.append(now.compiled != since.compiled)
            return now

    monkeypatch.setattr(stepping, "Watchdog", Dog)
    run(fastadv.pgd(threat_of("linf", 1e-4), steps=8), mixed_problem(8), batching="plain")
    (tape,) = tapes
    assert tape.captured > 0 and len(noted) == 8
    assert sum(noted) == tape.warmed + tape.captured < 8 and noted[0]
