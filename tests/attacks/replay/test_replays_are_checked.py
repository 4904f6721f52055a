"""Replays are held against the steps that were recorded: one that differs is undone and refused."""

import pytest
import torch
from graphs.tape import Forgetful
from members import MEMBERS, member, member_problem
from recorded import run
from torch import nn
from toy_models import NORMS, differing_fields, mixed_problem, threat_of

import fastadv
from fastadv.attacks.call import preparation
from fastadv.diagnostics import ExecutionWarning

_SCALE = [1.0]


class _Elsewhere(nn.Module):
    """Reads a number that belongs to no module: nobody sees that a recording has gone stale."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x) * _SCALE[0]


class _Counting(nn.Module):
    """Counts its passes in a buffer."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.passes.add_(1)
        return self.model(x) + 0.01 * torch.rand(len(x), 1)


def _faulty(monkeypatch: pytest.MonkeyPatch) -> list[Forgetful]:
    made: list[Forgetful] = []

    def backend_for(device, cuda_graph):
        if cuda_graph is False:
            return None
        made.append(Forgetful())
        return made[-1]

    monkeypatch.setattr(preparation, "backend_for", backend_for)
    return made


_ATTACKS = {
    **{name: (lambda norm, name=name: member(name, norm)) for name in MEMBERS},
    "pgd, best": lambda norm: fastadv.pgd(threat_of(norm), steps=8, keep="best"),
    "momentum": lambda norm: fastadv.mifgsm(threat_of(norm), steps=8),
}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", _ATTACKS)
def test_a_faulty_replay_is_undone_before_it_can_do_harm(monkeypatch, name, norm):
    tapes = _faulty(monkeypatch)
    problem, attack = member_problem(24), _ATTACKS[name](norm)
    eager = run(attack, problem, graph=False, batch_size=9)
    with pytest.warns(ExecutionWarning, match="a replay left .* attacks go on without") as said:
        got = run(attack, problem, batch_size=9)
    # what FAB's first replay in L1 forgets changes nothing: the next recording is the one refused
    assert len(said) == 1 and tapes[0].captured == (2 if (name, norm) == ("fab_t", "l1") else 1)
    assert differing_fields(eager, got) == []
    preparation.release()


def test_a_recording_that_has_gone_stale_between_calls_is_found_out(tapes):
    problem, model = mixed_problem(16), _Elsewhere(mixed_problem(16).model)
    attack = fastadv.pgd(threat_of("linf"), steps=5, keep="last")
    _SCALE[0] = 1.0
    run(attack, problem, model, batching="plain")
    assert tapes[0].captured == 1 and tapes[0].rehearsed == 2
    _SCALE[0] = -3.0
    eager = run(attack, problem, model, batching="plain", graph=False)
    with pytest.warns(ExecutionWarning, match="a replay left"):
        got = run(attack, problem, model, batching="plain")
    assert differing_fields(eager, got) == []
    _SCALE[0] = 1.0


def test_what_a_model_counts_and_draws_is_what_it_would_without_a_check(tapes):
    problem = mixed_problem(16)
    attack = fastadv.pgd(threat_of("linf", 1e-4), steps=12, keep="last")
    counted, results = [], []
    for graph in (False, "auto"):
        model = _Counting(problem.model)
        results.append(run(attack, problem, model, batching="plain", graph=graph))
        counted.append(int(model.passes))
    assert tapes[0].rehearsed > 0 and tapes[0].replayed > tapes[0].captured
    assert differing_fields(*results) == []
    # the recording made its pass for nothing, and the tape undid that
    assert counted[0] == counted[1]
    assert (results[0].forwards, results[0].backwards) == (
        results[1].forwards,
        results[1].backwards,
    )
