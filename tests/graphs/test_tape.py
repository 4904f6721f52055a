"""The stand-in for CUDA graphs behaves as they do: the other tests of graphs rest on it."""

import copy

import pytest
import torch
from tape import Tape
from torch import nn

from fastadv.ops.heads import loss_head as heads
from fastadv.ops.steps import linf


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)
    )


def test_replays_of_an_attack_step_equal_eager_steps_bit_for_bit():
    net = _net()
    x = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    y = torch.tensor([0, 1, 2])

    def step_of(net: nn.Module, x_adv: torch.Tensor, losses: torch.Tensor):
        def step() -> None:
            leaf = x_adv.detach().requires_grad_()
            logits = net(leaf)
            head = heads.loss_head(logits, y, loss="ce")
            (grad,) = torch.autograd.grad(logits, leaf, head.grad)
            linf.linf_step_(x_adv, grad, x, step_size=0.02, eps=0.1, bounds=(0.0, 1.0))
            losses.copy_(head.loss)

        return step

    eager_net, eager_x, eager_losses = copy.deepcopy(net), x.clone(), torch.zeros(3)
    x_adv, losses = x.clone(), torch.zeros(3)
    eager, replay = step_of(eager_net, eager_x, eager_losses), None
    replay = Tape().capture(step_of(net, x_adv, losses))
    for _ in range(4):
        eager()
        replay()
        assert torch.equal(x_adv, eager_x) and not torch.equal(x_adv, x)
        assert torch.equal(losses, eager_losses)
        # schemas of batch normalisation do not say that it moves these
        assert torch.equal(net[1].running_mean, eager_net[1].running_mean)
        assert torch.equal(net[1].num_batches_tracked, eager_net[1].num_batches_tracked)


def test_a_capture_changes_no_value_and_draws_nothing():
    net, x = _net(), torch.rand(3, 1, 8, 8)
    before, x_before = copy.deepcopy(net.state_dict()), x.clone()
    generator = torch.get_rng_state()

    def step() -> None:
        x.view(-1)[:5].mul_(2)
        x.add_(torch.rand(3, 1, 8, 8))
        net(x)

    Tape().capture(step)
    assert torch.equal(x, x_before)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)


def test_a_capture_that_fails_changes_nothing_either():
    x = torch.ones(3)

    def step() -> None:
        x.mul_(2)
        raise KeyError("stop")

    with pytest.raises(KeyError):
        Tape().capture(step)
    assert torch.equal(x, torch.ones(3))


def test_a_replay_reads_what_lies_at_the_addresses_and_not_what_python_had():
    weight, x, out, factor = torch.ones(2, 2), torch.ones(1, 2), torch.zeros(1, 2), [2.0]

    def step() -> None:
        out.copy_(x @ weight * factor[0])

    replay = Tape().capture(step)
    weight.fill_(3.0)
    x[0, 0] = 0.0
    factor[0] = 100.0
    replay()
    assert torch.equal(out, torch.full((1, 2), 6.0))


def test_views_and_operations_in_place_write_through():
    x, out = torch.arange(6.0).view(2, 3), torch.zeros(3)

    def step() -> None:
        row = x[1]
        twice = row * 2
        twice[0].add_(1.0)
        row.add_(10.0)
        out.copy_(twice)

    replay = Tape().capture(step)
    for first in (3.0, 13.0):
        replay()
        assert torch.equal(out, torch.tensor([2 * first + 1, 2 * first + 2, 2 * first + 4]))
    assert torch.equal(x[1], torch.tensor([23.0, 24.0, 25.0]))


def test_random_operations_draw_anew_at_each_replay():
    out = torch.zeros(4)

    def step() -> None:
        out.copy_(torch.rand(4))

    replay = Tape().capture(step)
    torch.manual_seed(5)
    replay()
    first = out.clone()
    replay()
    torch.manual_seed(5)
    assert torch.equal(first, torch.rand(4)) and torch.equal(out, torch.rand(4))


def test_tensors_of_the_graph_hold_garbage_outside_of_a_replay():
    x, kept = torch.ones(3), []
    replay = Tape().capture(lambda: kept.append(x + 1))
    assert kept[0].isnan().all()
    replay()
    assert kept[0].isnan().all() and torch.equal(x, torch.ones(3))


def test_what_waits_for_the_device_is_refused():
    x = torch.ones(3)
    for step in (lambda: x.sum().item(), lambda: x[x > 0], lambda: x.nonzero()):
        with pytest.raises(RuntimeError, match="waits for the device"):
            Tape().capture(step)
