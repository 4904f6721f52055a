"""What a newcomer gives first, and what is said: in words, with what to do."""

import re

import numpy as np
import pytest
import torch
from torch import nn

import fastadv
from fastadv.compat.autoattack import AutoAttack

THREAT = fastadv.Linf(0.1)
ATTACK = fastadv.pgd(THREAT, steps=1)
X, Y = torch.full((4, 3, 4, 4), 0.5), torch.arange(4)
NET = nn.Sequential(nn.Flatten(), nn.Linear(48, 4))


class Viewing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.convolution(x).view(len(x), -1)


def _curve(eps):
    fastadv.robustness_curve(NET, (X, Y), ATTACK, eps=eps)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: _curve(0.1), "eps must be a list of radii, as in eps=[2 / 255, 8 / 255]; got 0.1"),
        (lambda: _curve("0.1"), "eps must be a list of radii"),
        (
            lambda: ATTACK(NET, torch.zeros(4, 7, dtype=torch.int64), Y),
            "got torch.int64. If these are token ids: their embeddings are attacked",
        ),
        (
            lambda: ATTACK(NET, torch.zeros(4, 3, 4, 4, dtype=torch.uint8), Y),
            "got torch.uint8. Convert 8-bit images with x.float() / 255",
        ),
        (lambda: ATTACK(NET, X.numpy(), Y), "got ndarray: give torch.as_tensor(x)"),  # type: ignore
        (lambda: ATTACK(nn.Linear, X, Y), "model must be a model; got the class Linear: call it"),
        (
            lambda: AutoAttack(NET, eps=0.1, device="cpu", verbose=False).run_standard_evaluation(
                np.zeros((4, 3, 4, 4)),  # type: ignore[arg-type]
                Y,
            ),
            "x_orig must be a torch.Tensor; got ndarray: give torch.as_tensor(x_orig)",
        ),
    ],
)
def test_it_is_said_what_to_give(call, words):
    with pytest.raises(TypeError, match=re.escape(words)):
        call()


def test_a_model_that_views_is_told_of_its_layout():
    outside = X.contiguous(memory_format=torch.channels_last)
    inside = fastadv.Execution(channels_last=True)
    for call in (
        lambda: ATTACK(Viewing(), X, Y, execution=inside),
        lambda: ATTACK(Viewing(), outside, Y),
        lambda: fastadv.training.FastAT(THREAT).loss(Viewing(), outside, Y),
    ):
        with pytest.raises(RuntimeError, match=r"lies in channels_last here: write \.reshape\(\)"):
            call()


def test_bytes_are_made_by_a_public_name():
    x_adv = (X + 0.1).clamp(0, 1)
    pixels = fastadv.to_uint8(x_adv, X, THREAT)
    assert pixels.dtype == torch.uint8
    assert fastadv.contains(THREAT, pixels.float() / 255, X).all()
