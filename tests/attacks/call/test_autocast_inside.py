"""A model with an autocast of its own is attacked at its iterates, not at the first of them."""

import pytest
import torch
from members import GRADIENT_MEMBERS, member_problem
from torch import nn

import fastadv
from fastadv import training
from fastadv.attacks.attack import norms_of


class Mixed(nn.Module):
    """Casts x itself first thing, which autocast's cache would keep; logs what it answers."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.inner = nn.Parameter(torch.randn(16, *shape, generator=generator))
        self.outer = nn.Parameter(torch.randn(5, 16, generator=generator))
        self.answers: list[float] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = nn.functional.conv2d(x, self.inner).flatten(1)  # x itself, no view
            # no corner of the ball is the best: every step moves
            logits = nn.functional.linear(torch.cos(4 * hidden), self.outer).float()
        if logits.requires_grad:
            self.answers.append(float(logits.detach().double().abs().sum()))
        return logits


@pytest.mark.parametrize("batching", ["plain", "continuous"])
@pytest.mark.parametrize("name", [*GRADIENT_MEMBERS, "pgd", "mifgsm"])
def test_every_step_sees_another_iterate(name, batching):
    p = member_problem(8)
    model = Mixed(p.x.shape[1:])
    of_norm = {"linf": fastadv.Linf(0.02), "l2": fastadv.L2(0.1), "l0": fastadv.L0(3)}
    threat = next(of_norm[norm] for norm in of_norm if norm in norms_of(name))
    attack = getattr(fastadv, name)(threat, steps=6, keep="best")
    with torch.no_grad():
        y = model(p.x).argmax(1)
    attack.run(model, p.x, y, execution=fastadv.Execution(batching=batching))
    assert len(set(model.answers)) >= 4


def test_so_does_every_craft_pass_under_the_users_autocast():
    p = member_problem(8)
    model = Mixed(p.x.shape[1:])
    step = training.PGDAT(fastadv.Linf(0.05), steps=6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        step.loss(model, p.x, p.y)
    assert len(set(model.answers)) >= 6
