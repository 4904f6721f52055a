"""The smallest and the largest of a tensor, whatever its dtype, layout and values."""

import math

import pytest
import torch

from fastadv.attacks.call.extremes import extremes

VALUES = torch.tensor([[0.5, -2.0, 3.0], [1.0, 0.0, -1.0]])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "changed",
    {
        "plain": lambda v: v,
        "transposed": lambda v: v.t(),
        "with a graph": lambda v: v.clone().requires_grad_(),
        "in inference mode": lambda v: v.clone(),
    }.items(),
    ids=lambda item: item[0],
)
def test_of_any_tensor(dtype, changed):
    name, change = changed
    with torch.inference_mode(name == "in inference mode"):
        assert extremes(change(VALUES.to(dtype))) == (-2.0, 3.0)


def test_of_a_view_whose_sign_is_not_carried_out_yet():
    flipped = torch.complex(VALUES, VALUES).conj().imag
    assert flipped.is_neg()
    assert extremes(flipped) == (-3.0, 2.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_is_both(dtype):
    assert all(map(math.isnan, extremes(torch.tensor([0.0, math.nan, 1.0], dtype=dtype))))
