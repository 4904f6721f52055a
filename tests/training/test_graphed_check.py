"""Replayed training steps are held against eager ones, and undone where they differ."""

import pytest
import torch
from graphed_pair import Pair, sgd
from graphs.tape import Forgetful
from torch import nn
from training_problems import METHODS, SHAPE, THREAT, batches, conv_net

from fastadv import training
from fastadv.diagnostics import ExecutionWarning
from fastadv.graphs import planner
from fastadv.training import PerturbationBank, graphed
from fastadv.training import graphed_step as recording

_SCALE = [1.0]


class _Elsewhere(nn.Module):
    """Reads a number that belongs to no module: nobody sees that a recording has gone stale."""

    def __init__(self) -> None:
        super().__init__()
        self.net = conv_net(bn=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x) * _SCALE[0]


# YOPO differentiates the first layer of a Sequential
@pytest.mark.parametrize("name", [name for name in METHODS if name != "YOPO"])
def test_a_recording_that_has_gone_stale_is_found_out_and_undone(tape, name):
    pair = Pair(lambda: METHODS[name](THREAT), net=_Elsewhere())
    with pytest.warns(ExecutionWarning, match="a replay left .* training steps go on") as said:
        for i, batch in enumerate(batches(8)):
            _SCALE[0] = 1.0 + 0.1 * i
            pair.train([batch])
    assert len(said) == 1 and pair.run.replays == 1
    assert "what the model changes between its passes" in pair.run.refusal


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("name", METHODS)
def test_a_faulty_replay_is_undone_before_it_can_do_harm(monkeypatch, name, kind):
    tape = Forgetful()
    monkeypatch.setattr(recording, "backend_for", lambda device, cuda_graph: tape)

    def optimizer(net):
        more = {"momentum": 0.9} if kind is torch.optim.SGD else {}
        return kind(net.parameters(), lr=0.01, fused=True, **more)

    def step():
        more = {"bank": PerturbationBank(16, SHAPE)} if name == "PGDAT" else {}
        return METHODS[name](THREAT, **more)

    pair = Pair(step, optimizer=optimizer)
    ids = {"sample_ids": torch.arange(16)} if name == "PGDAT" else {}
    with pytest.warns(ExecutionWarning, match="a replay left"):
        pair.train(batches(6), **ids)
    assert tape.captured == 1 and pair.run.replays == 0


def test_a_model_that_draws_is_replayed_and_draws_what_it_would_without_a_check(tape, monkeypatch):
    def trained() -> tuple[torch.Tensor, torch.Tensor]:
        net = conv_net(dropout=0.3)
        run = graphed(training.PGDAT(THREAT, steps=2), sgd(net))
        torch.manual_seed(5)
        for x, y in batches(7):
            run(net, x, y)
        assert run.replays == 4 and run.refusal is None
        return net[0].weight.detach(), torch.get_rng_state()

    generator = torch.get_rng_state()
    checked = trained()
    assert tape.rehearsed == 4
    monkeypatch.setattr(planner, "_CHECKED", 0)
    for a, b in zip(checked, trained(), strict=True):
        assert torch.equal(a, b)
    torch.set_rng_state(generator)
