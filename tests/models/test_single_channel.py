"""The one-channel convolution has the values, gradients and state of nn.Conv2d."""

import pytest
import torch
from torch import nn

from fastadv.models.single_channel import SingleChannelConv2d


def _pair(dtype: torch.dtype = torch.float64) -> tuple[SingleChannelConv2d, nn.Conv2d]:
    torch.manual_seed(0)
    mine = SingleChannelConv2d(5, 4, stride=2, padding=1).to(dtype)
    theirs = nn.Conv2d(1, 5, 4, stride=2, padding=1).to(dtype)
    theirs.load_state_dict(mine.state_dict())
    return mine, theirs


def _leaf(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(shape, generator=generator, dtype=dtype).requires_grad_()


@pytest.mark.parametrize("shape", [(3, 1, 28, 28), (1, 1, 9, 12), (0, 1, 8, 8)])
def test_values_and_gradients_are_those_of_conv2d(shape):
    found = []
    for layer in _pair():
        x = _leaf(shape)
        output = layer(x)
        (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
        found.append((output.detach(), x.grad, layer.weight.grad, layer.bias.grad))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_it_can_be_differentiated_twice():
    mine, _ = _pair()
    assert torch.autograd.gradgradcheck(mine, _leaf((2, 1, 6, 6)))


def test_frozen_weights_get_no_gradient_and_an_input_that_needs_none_gets_none():
    mine, theirs = _pair()
    x = _leaf((2, 1, 8, 8))
    mine.requires_grad_(False)
    (grad,) = torch.autograd.grad(mine(x).square().sum(), x)
    (expected,) = torch.autograd.grad(theirs(x).square().sum(), x)
    torch.testing.assert_close(grad, expected, rtol=1e-12, atol=1e-12)
    mine.requires_grad_(True)
    mine(x.detach()).sum().backward()
    assert mine.weight.grad is not None


def test_autocast_gives_gradients_in_the_dtypes_of_what_they_belong_to():
    mine, theirs = _pair(torch.float32)
    found = []
    for layer in (mine, theirs):
        x = _leaf((2, 1, 8, 8), torch.float32)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = layer(x)
        output.float().square().sum().backward()
        assert output.dtype == torch.bfloat16
        found.append((x.grad, layer.weight.grad))
    for a, b in zip(*found, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.05)  # two roundings to bf16
