"""Wrappers over devices or processes cannot be recorded: their models are attacked eagerly."""

import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from toy_models import differing_fields, mixed_problem, threat_of

import fastadv
from fastadv.attacks.call import preparation
from fastadv.diagnostics import ExecutionWarning
from fastadv.graphs.parallel import REDUCED

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "graphs"))

from tape import Tape  # noqa: E402


@pytest.fixture
def tape(monkeypatch):
    made = Tape()
    monkeypatch.setattr(preparation, "backend_for", lambda device, how: made if how else None)
    yield made
    preparation.release()


@pytest.fixture
def alone(tmp_path):
    """A process group of this process."""
    file = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=file, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def attacked(problem, model, **execution):
    attack = fastadv.pgd(threat_of("linf"), steps=8)
    execution = fastadv.Execution(batch_size=8, **execution)
    return attack.run(model, problem.x, problem.y, execution=execution)


WRAPPED = {
    "data parallel": nn.DataParallel,
    "inside": lambda net: nn.Sequential(nn.Identity(), nn.DataParallel(net)),
    "function": lambda net: _called(nn.DataParallel(net)),
    "distributed": nn.parallel.DistributedDataParallel,
}


def _called(net):
    return lambda x: net(x)


@pytest.mark.parametrize("name", WRAPPED)
def test_a_wrapped_model_is_attacked_eagerly_and_told_once(tape, alone, name):
    problem = mixed_problem(16)
    eager = attacked(problem, problem.model, cuda_graph=False)
    model = WRAPPED[name](problem.model)
    with pytest.warns(ExecutionWarning, match=f"not captured, because {REDUCED}.*slower") as said:
        found = attacked(problem, model)
    assert len(said) == 1 and differing_fields(eager, found) == []
    assert (tape.warmed, tape.captured) == (0, 0)
    if name != "function":  # of which nothing is kept between calls
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            attacked(problem, model)


def test_where_a_graph_is_required_a_wrapper_is_an_error(tape):
    problem = mixed_problem(16)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=f"{REDUCED}. Mend that, or leave out"):
            attacked(problem, nn.DataParallel(problem.model), cuda_graph=True)


def test_a_copy_without_the_wrapper_is_recorded(tape):
    problem = mixed_problem(16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attacked(problem, nn.DataParallel(problem.model), precision="bf16")
    assert tape.captured > 0
