"""Perturbations that are kept: the bank's, Free's; and batches of any size and layout."""

import copy

import pytest
import torch
from torch import nn
from training_problems import (
    METHODS,
    SHAPE,
    THREAT,
    batches,
    conv_net,
    largest_difference,
    sgd,
    train_batch,
)

import fastadv
from fastadv import training
from fastadv.training import PerturbationBank

EPS = 0.1


@pytest.mark.parametrize("eps", [0.1, 8 / 255])
def test_the_bank_is_off_by_at_most_half_a_level(eps):
    bank = PerturbationBank(10, SHAPE)
    x = torch.full((4, *SHAPE), 0.5, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    delta = eps * (2 * torch.rand(x.shape, generator=generator, dtype=torch.float64) - 1)
    delta[0, 0, 0, :2] = torch.tensor([eps, -eps])
    ids = torch.tensor([7, 0, 9, 3])
    bank.put(ids, x + delta, x, eps=eps)
    back = bank.get(ids, x, eps=eps, bounds=(0.0, 1.0)) - x
    error = (back - delta).abs().max()
    assert 0.9 * eps / 254 < error <= eps / 254 * (1 + 1e-9)
    assert back.abs().max() <= eps * (1 + 1e-9)
    torch.testing.assert_close(back[0, 0, 0, :2], delta[0, 0, 0, :2])  # the borders are exact
    assert bank.levels.element_size() == 1
    # in another order, and at another radius, in units of eps
    other = bank.get(ids.flip(0), x, eps=2 * eps, bounds=None) - x
    torch.testing.assert_close(other, 2 * back.flip(0), rtol=0, atol=1e-12)


def test_a_sample_never_seen_starts_at_x():
    bank = PerturbationBank(4, SHAPE)
    ((x, _),) = batches(1, size=4)
    assert torch.equal(bank.get(torch.arange(4), x, eps=0.1, bounds=(0.0, 1.0)), x)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_warm_start_is_where_the_last_craft_of_the_sample_ended(layout):
    x = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    x, y = x.to(memory_format=layout), torch.arange(4)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 5))
    step = training.PGDAT(THREAT, steps=2, bank=PerturbationBank(20, (3, 8, 8)))
    starts = []
    net.register_forward_pre_hook(lambda module, args: starts.append(args[0].detach().clone()))
    ids = torch.tensor([11, 2, 19, 0])
    first = step.craft(net, x, y, sample_ids=ids)
    assert torch.equal(starts[0], x)
    starts.clear()
    order = torch.tensor([2, 0, 3, 1])
    second = step.craft(net, x[order], y[order], sample_ids=ids[order])
    wanted = first.x_adv[order]
    assert (starts[0] - wanted).abs().max() <= EPS / 254 + 1e-6
    assert not torch.equal(starts[0], x[order])
    assert fastadv.contains(THREAT, second.x_adv, x[order]).all()


def test_an_unchanged_bank_is_left_alone_by_others_samples():
    bank = PerturbationBank(20, SHAPE)
    ((x, y),) = batches(1, size=4)
    step = training.FastAT(THREAT, bank=bank)
    step.loss(conv_net(), x, y, sample_ids=torch.tensor([5, 6, 7, 8]))
    used = bank.levels.flatten(1).any(1).nonzero().flatten().tolist()
    assert used == [5, 6, 7, 8]


def test_a_bank_at_radius_zero_keeps_nothing():
    bank = PerturbationBank(4, SHAPE)
    ((x, y),) = batches(1, size=4)
    step = training.FastAT(fastadv.Linf(0.0), bank=bank)
    step.loss(conv_net(), x, y, sample_ids=torch.arange(4))
    assert not bank.levels.any()


def test_the_perturbation_of_free_grows_with_the_batch_and_keeps_its_rows():
    net, step = conv_net(), training.FreeAT(THREAT, replays=2)
    (x, y), (x2, y2), (x3, y3) = batches(3)
    train_batch(step, net, sgd(net), x[:5], y[:5])
    five = step.delta.clone()
    train_batch(step, net, sgd(net), x2, y2)  # a longer batch
    assert step.delta.shape == x2.shape
    sixteen = step.delta.clone()
    train_batch(step, net, sgd(net), x3[:3], y3[:3])  # a short last one
    assert torch.equal(step.delta[3:], sixteen[3:])
    assert not torch.equal(step.delta[:3], sixteen[:3])
    # the first five rows went on from where they were: the first input of batch 2 is x2 + them
    again, seen = training.FreeAT(THREAT, replays=2), []
    again.load_state_dict({"method": "FreeAT", "batches": 2, "delta": five})
    net.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().clone()))
    train_batch(again, net, sgd(net), x2, y2)
    first = seen[1]  # seen[0] is x2, whose labels are checked against the classes
    assert torch.equal(first[:5], x2[:5] + five) and torch.equal(first[5:], x2[5:])


def test_the_perturbation_of_free_is_kept_when_the_user_leaves_the_loop():
    net, step = conv_net(), training.FreeAT(THREAT, replays=4)
    ((x, y),) = batches(1)
    losses = step(net, x, y)
    for _ in range(3):
        next(losses).backward()  # the third is not asked for what comes after
    losses.close()
    moved = step.delta.abs().amax()
    assert float(moved) == pytest.approx(EPS, rel=1e-5) and step.batches == 2


_THREATS = (fastadv.Linf(0.1), fastadv.L2(0.5), fastadv.L1(3.0))


@pytest.mark.parametrize(
    ("name", "threat"),
    # N-FGSM is defined for L-infinity
    [(n, t) for n in METHODS for t in _THREATS if n != "NFGSM" or t.norm == "linf"],
    ids=str,
)
def test_a_batch_of_one_sample_trains(name, threat):
    ((x, y),) = batches(1, size=1)
    net = conv_net()
    before = copy.deepcopy(net)
    losses = train_batch(METHODS[name](threat), net, sgd(net), x, y)
    assert torch.stack(losses).isfinite().all() and largest_difference(net, before) > 0


@pytest.mark.parametrize("name", METHODS)
def test_memory_formats_change_no_value(name):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(4, 3, 8, 8, generator=generator, dtype=torch.float64), torch.arange(4)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(144, 5)).double()
    forms = {
        "contiguous": x,
        "channels_last": x.to(memory_format=torch.channels_last),
        "strided": torch.stack([x, x], -1)[..., 0],
    }
    found = {}
    for form, images in forms.items():
        step = METHODS[name](THREAT)
        for _ in range(2):
            losses = [loss.backward() or loss.detach() for loss in step(net, images, y)]
        found[form] = torch.stack(losses)
    for form, losses in found.items():
        torch.testing.assert_close(losses, found["contiguous"], rtol=1e-12, atol=0, msg=form)
