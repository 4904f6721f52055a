"""What several processes that train one network find out about its clamp."""

import pytest
import torch
from clamping_problems import counted_warnings, make_step, pair_of, problems
from torch import nn

from fastadv.training import input_watch


def _ranked(monkeypatch, others: float):
    """As one of two ranks, the other of which knows `others`."""
    asked = []

    def all_reduce(value, op, group):
        asked.append(value.item())
        value.clamp_(min=others)

    monkeypatch.setattr(input_watch, "is_distributed", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    return asked


@pytest.mark.parametrize("others", [-1.0, 0.0, 1e-6])
def test_ranks_that_wait_for_one_another_decide_alike(others, monkeypatch):
    """With SyncBatchNorm a pass more on one rank alone would wait for ever."""
    asked = _ranked(monkeypatch, others)
    net, _ = pair_of("hardtanh")
    net.append = nn.SyncBatchNorm(3).eval()  # it is not called: on a CPU it cannot be
    x, y, _ = problems("PGDAT", 1)[0]
    step = make_step("PGDAT", net, steps=2)
    with counted_warnings() as warned:
        step.craft(net, x * 0.4 + 0.3, y)  # this rank has seen nothing
    assert asked == [-1.0] * (2 if others < 0 else 1)
    assert step._watch.inset == max(others, 0.0) and len(warned) == (others > 0)


def test_other_ranks_decide_for_themselves(monkeypatch):
    asked = _ranked(monkeypatch, 0.5)
    net, _ = pair_of("hardtanh")
    x, y, _ = problems("PGDAT", 1)[0]
    make_step("PGDAT", net).craft(net, x * 0.4 + 0.3, y)
    assert not asked
