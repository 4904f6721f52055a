"""A network that was left in eval mode is named, once a step, where it matters."""

import warnings

import pytest
import torch
from torch import nn

import fastadv
from fastadv import training

X, Y = torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(4) % 2


def net(*between: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3), *between, nn.Flatten(), nn.Linear(8, 2))


STEPS = {
    "fast": lambda: training.FastAT(fastadv.Linf(0.1)),
    "free": lambda: training.FreeAT(fastadv.Linf(0.1), replays=1),
    "yopo": lambda: training.YOPO(fastadv.Linf(0.1), first_layer="0", outer=1, inner=1),
}


@pytest.mark.parametrize("method", STEPS)
def test_a_net_left_in_eval_mode_is_named_once(method):
    step, model = STEPS[method](), net(nn.BatchNorm2d(2), nn.Dropout(0.5)).eval()
    said = "eval mode: the Sequential is trained in it, and of its layers 1 that .*, and 1 that"
    with pytest.warns(training.TrainingWarning, match=said) as caught:
        for _ in range(2):
            for loss in step(model, X, Y):
                loss.backward()
    assert len(caught) == 1 and caught[0].message.code == "eval"


def test_nothing_is_said_where_both_modes_agree_or_training_goes_on():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        STEPS["fast"]().loss(net().eval(), X, Y)
        STEPS["fast"]().loss(net(nn.BatchNorm2d(2)).train(), X, Y)
        frozen = net(nn.BatchNorm2d(2)).train()
        frozen[1].eval()  # the normalisation alone: on purpose
        STEPS["fast"]().loss(frozen, X, Y)
