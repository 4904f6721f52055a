"""A zero gradient is reported where it weakens the attack, and only there."""

import warnings

import pytest
import torch

import fastadv

_WEIGHT = torch.tensor([[1.0, -1.0], [-1.0, 1.0], [0.0, 0.5]])
_X = torch.tensor([[0.9, 0.1], [0.1, 0.9]])
_Y = torch.tensor([0, 0])


@pytest.mark.parametrize("keep", ["first_success", "best", "last"])
@pytest.mark.parametrize("clamp_start", [True, False])
def test_a_margin_already_reached_is_no_masked_gradient(keep, clamp_start):
    attack = fastadv.pgd(
        fastadv.Linf(0.05), loss="margin", keep=keep, clamp_start=clamp_start, steps=2
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = attack.run(lambda x: x @ _WEIGHT.T, _X, _Y)
    assert result.success.tolist() == [False, True]


def test_a_flat_model_is_reported_with_its_count():
    with pytest.warns(fastadv.AttackWarning, match="zero_gradient: 2 of 2") as caught:
        fastadv.pgd(fastadv.Linf(0.05)).run(
            lambda x: (x * 0).sum(1, keepdim=True) + torch.tensor([2.0, 0.0]), _X, _Y
        )
    assert [w.message.count for w in caught] == [2]
