"""What tests of attacks on a GPU have in common; without one they skip."""

import pytest
import torch
from torch import nn
from toy_models import Problem

import fastadv
from fastadv.attacks.call import preparation
from fastadv.graphs.planner import StepGraphs

BATCHING = ("continuous", "plain")
WISHES = ("auto", True)


@pytest.fixture
def cuda():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    yield torch.device("cuda")
    preparation.release()


def on(device: torch.device, problem: Problem) -> Problem:
    return Problem(problem.model.to(device), problem.x.to(device), problem.y.to(device))


def run(attack, problem, model=None, *, graph: bool | str = "auto", **execution):
    return attack.run(
        model or problem.model,
        problem.x,
        problem.y,
        execution=fastadv.Execution(cuda_graph=graph, **execution),
    )


def graphs_of(model: nn.Module) -> list[StepGraphs]:
    """Those kept for the model, all of which must have been recorded and replayed."""
    graphs = [one.graphs for one in preparation._KEPT[model].values() if one.graphs is not None]
    assert graphs
    for one in graphs:
        assert one.refusal is None and one.captures > 0 and one.replays > one.captures
    return graphs


def captures(model: nn.Module) -> int:
    return sum(one.captures for one in graphs_of(model))


def total_captures(model: nn.Module) -> int:
    return sum(one.graphs.captures for one in preparation._KEPT[model].values() if one.graphs)


def _negative_logit(logits, y):
    return -logits.gather(1, y[:, None])[:, 0]


PGD = {
    "pgd": lambda threat: fastadv.pgd(threat, steps=8, restarts=2),
    "best": lambda threat: fastadv.pgd(threat, steps=8, keep="best"),
    "last": lambda threat: fastadv.pgd(threat, steps=8, keep="last"),
    "eot": lambda threat: fastadv.pgd(threat, steps=8, eot=2),
    "momentum": lambda threat: fastadv.mifgsm(threat, steps=8),
    "callable loss": lambda threat: fastadv.pgd(threat, steps=8, loss=_negative_logit),
}
