"""YOPO: the gradient of its co-state, what it hands over, and the layer that it is given."""

import copy

import pytest
import torch
from torch import nn
from training_problems import (
    THREAT,
    batches,
    conv_net,
    uniform,
)

from benchmarks import reference
from fastadv import training

EPS = 0.1

pytestmark = pytest.mark.usefixtures("clamp_rule_in_force")


def test_yopo_hands_over_the_mean_of_the_gradients_that_the_authors_sum():
    net = conv_net(dtype=torch.float64)
    ((x, y),) = batches(1, dtype=torch.float64)
    noise = uniform(x, EPS, seed=0)
    theirs = copy.deepcopy(net)
    handed = {}
    for name, p in theirs.named_parameters():
        p.register_post_accumulate_grad_hook(
            lambda p, name=name: handed.update({name: p.grad.clone()})
        )
    reference.yopo_step(
        theirs,
        torch.optim.SGD(theirs.parameters(), lr=0.0),
        x,
        y,
        first_layer=theirs[0],
        eps=EPS,
        step_size=0.03,
        outer=3,
        inner=2,
        noise=noise,
    )
    step = training.YOPO(THREAT, first_layer="0", outer=3, inner=2, step_size=0.03)
    step.loss(net, x, y, x_init=x + noise).backward()
    for name, p in net.named_parameters():
        torch.testing.assert_close(3 * p.grad, handed[name], rtol=0, atol=1e-12, msg=name)


def test_the_costate_gives_the_input_gradient_of_autograd():
    """d <h(x), p> / d x, p = d loss / d h(x), is d loss / d x."""
    net = conv_net(dtype=torch.float32)
    ((x, y),) = batches(1)
    asked = []
    step = training.YOPO(THREAT, first_layer="0", outer=1, inner=1)

    class Spied(type(THREAT)):
        def step_(self, x_adv, grad, x, **more):
            asked.append((x_adv.clone(), grad.clone()))
            return super().step_(x_adv, grad, x, **more)

    step.threat = Spied(EPS)
    step.loss(net, x, y, x_init=x)
    ((x_adv, grad),) = asked
    leaf = x_adv.requires_grad_()
    loss = nn.functional.cross_entropy(net(leaf), y, reduction="sum")  # not the mean: see there
    (expected,) = torch.autograd.grad(loss, leaf)
    assert expected.abs().max() > 1e-4
    torch.testing.assert_close(grad, expected, rtol=0, atol=1e-6 * float(expected.abs().max()))


class _Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)
        self.head = nn.Linear(64, 5)

    def forward(self, x):
        return self.head(self.conv(self.conv(x)).flatten(1))


def test_yopo_names_a_bad_first_layer():
    ((x, y),) = batches(1)
    with pytest.raises(ValueError, match="got 'conv1'. Its first: .'0', '1'"):
        training.YOPO(THREAT, first_layer="conv1").loss(conv_net(), x, y)
    with pytest.raises(ValueError, match="first_layer must name a submodule of the model; got ''"):
        training.YOPO(THREAT, first_layer="").loss(conv_net(), x, y)
    with pytest.raises(ValueError, match="first_layer must be called once a forward; it was 2"):
        training.YOPO(THREAT, first_layer="conv").loss(_Twice(), x, y)
    with pytest.raises(TypeError, match="YOPO needs an nn.Module; got function"):
        training.YOPO(THREAT, first_layer="conv").loss(lambda x: x, x, y)


def test_yopo_refuses_a_compiled_model():
    ((x, y),) = batches(1)
    compiled = torch.compile(conv_net(), backend="eager")
    for model in (compiled, nn.Sequential(compiled)):
        with pytest.raises(ValueError, match="give it the model as it was before torch.compile"):
            training.YOPO(THREAT, first_layer="0").loss(model, x, y)
    model = conv_net()
    model.compile(backend="eager")
    with pytest.raises(ValueError, match="give it the model as it was before torch.compile"):
        training.YOPO(THREAT, first_layer="0").loss(model, x, y)


def _gradients(net: nn.Module, *, first_layer: str = "0") -> list[torch.Tensor | None]:
    ((x, y),) = batches(1, dtype=torch.float64)
    net.zero_grad()
    step = training.YOPO(THREAT, first_layer=first_layer, outer=2, inner=2)
    step.loss(net, x, y).backward()
    return [None if p.grad is None else p.grad.clone() for p in net.parameters()]


def _relu_net(inplace: bool) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(inplace=inplace), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(4 * 64, 5)).double()


def test_what_works_in_place_behind_the_first_layer_changes_nothing():
    for mine, theirs in zip(_gradients(_relu_net(True)), _gradients(_relu_net(False)), strict=True):
        assert torch.equal(mine, theirs) and mine.abs().max() > 0


def test_a_frozen_first_layer_is_attacked_through_and_left_alone():
    net = _relu_net(False)
    free = _gradients(net)
    net[0].requires_grad_(False)
    frozen = _gradients(net)
    assert frozen[:2] == [None, None]
    torch.testing.assert_close(frozen[2:], free[2:], rtol=1e-12, atol=0)
