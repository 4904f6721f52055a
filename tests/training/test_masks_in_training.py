"""`mask=` in training: the model sees x itself outside of it, whatever the method."""

import copy

import pytest
import torch
from graphed_pair import Pair
from training_problems import (
    METHODS,
    THREAT,
    batches,
    conv_net,
    largest_difference,
    sgd,
    train_batch,
)

import fastadv
from fastadv import training

MASK = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(3)) < 0.5
EVERYTHING = torch.ones(8, 8, dtype=torch.bool)


@pytest.mark.parametrize("threat", [THREAT, fastadv.L2(0.5)], ids=["linf", "l2"])
@pytest.mark.parametrize("name", METHODS)
def test_outside_the_model_sees_x(name, threat):
    if name == "NFGSM" and threat.norm != "linf":
        threat = fastadv.Linf(0.05)
    net, seen = conv_net(), []
    net.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach().clone()))
    step, optimizer = METHODS[name](threat), sgd(net)
    for x, y in batches(2):
        seen.clear()
        train_batch(step, net, optimizer, x, y, mask=MASK)
        for given in seen:
            assert torch.equal(given[~MASK], x[~MASK])
        moved = torch.stack([(given != x).flatten(1).any(1) for given in seen]).any(0)
        assert moved.all()


@pytest.mark.parametrize("name", METHODS)
def test_a_mask_of_everything_trains_the_same_weights(name):
    nets = conv_net(), conv_net()
    for net, mask in zip(nets, (None, EVERYTHING), strict=True):
        step, optimizer = METHODS[name](THREAT), sgd(net)
        for x, y in batches(2):
            train_batch(step, net, optimizer, x, y, mask=mask)
    assert largest_difference(*nets) == 0


def test_a_mask_of_nothing_trains_on_clean_samples():
    x, y = batches(1)[0]
    net = conv_net()
    loss = training.PGDAT(THREAT, steps=2).loss(net, x, y, mask=~EVERYTHING)
    assert torch.equal(loss, torch.nn.functional.cross_entropy(net(x), y))


def test_the_batch_is_that_of_the_attack():
    x, y = batches(1)[0]
    net, start = conv_net(), torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    step = training.PGDAT(THREAT, steps=3, step_size=0.04)
    crafted = step.craft(net, x, y, x_init=start, mask=MASK)  # which is x outside
    attack = fastadv.pgd(THREAT, steps=3, step_size=0.04, keep="last")
    start = torch.where(MASK, start, x)
    assert torch.equal(crafted.x_adv, attack(net, x, y, x_init=start, mask=MASK))


def test_the_perturbation_of_free_training_waits_outside():
    net, step = conv_net(), training.FreeAT(THREAT, replays=2)
    optimizer = sgd(net)
    (x, y), (x2, y2) = batches(2)
    train_batch(step, net, optimizer, x, y)
    before = copy.deepcopy(step.delta)
    train_batch(step, net, optimizer, x2, y2, mask=MASK)
    assert torch.equal(step.delta[~MASK], before[~MASK])
    assert not torch.equal(step.delta[MASK], before[MASK])


def test_with_a_bank_and_modifiers():
    modifiers = [training.GradAlign(), training.AWP()]
    bank = training.PerturbationBank(16, (1, 8, 8))
    step = training.FastAT(THREAT, bank=bank, modifiers=modifiers)
    net, seen = conv_net(), []
    net.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach().clone()))
    x, y = batches(1)[0]
    bank.levels.fill_(64)
    step.loss(net, x, y, sample_ids=torch.arange(16), mask=MASK).backward()
    assert len(seen) > 3
    assert all(torch.equal(given[~MASK], x[~MASK]) for given in seen)


@pytest.mark.parametrize("name", ["TRADES", "FreeAT", "YOPO"])
def test_recorded_steps_take_the_mask_of_their_batch(tape, name):
    pair = Pair(lambda: METHODS[name](THREAT))
    for number, batch in enumerate(batches(7)):
        pair.train([batch], mask=MASK if number % 2 else ~MASK)
    assert pair.run.replays == 4
    pair.train(batches(1))  # without one


def test_masks_that_are_none():
    x, y = batches(1)[0]
    net = conv_net()
    with pytest.raises(TypeError, match="mask must be a bool tensor"):
        training.FastAT(THREAT).loss(net, x, y, mask=torch.ones(8, 8))
    with pytest.raises(ValueError, match="mask must broadcast to x"):
        training.FastAT(THREAT).loss(net, x, y, mask=EVERYTHING[:3])
    with pytest.raises(ValueError, match=r"L1\(1.0\) takes no mask=: use fastadv.Linf"):
        training.PGDAT(fastadv.L1(1.0)).loss(net, x, y, mask=EVERYTHING)
