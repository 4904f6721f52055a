"""State that resumes bit for bit, and noise that is a function of its keys."""

import copy
import io

import pytest
import torch
from training_problems import (
    CRAFTED,
    METHODS,
    SHAPE,
    THREAT,
    batches,
    conv_net,
    sgd,
    train_batch,
)

import fastadv
from fastadv import training
from fastadv.training import AWP, GradAlign, PerturbationBank


def _saved(state):
    """Through a file that is loaded without executing code."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


_RESUMED = [(name, {}) for name in METHODS] + [
    ("PGDAT", {"bank": None}),
    ("FastAT", {"bank": None, "eps_warmup": 5}),
    ("FastAT", {"modifiers": [GradAlign(), AWP()]}),
]


@pytest.mark.parametrize(("name", "settings"), _RESUMED, ids=str)
def test_a_resumed_step_gives_the_same_next_losses_bit_for_bit(name, settings):
    def make():
        more = {"bank": PerturbationBank(16, SHAPE)} if "bank" in settings else {}
        return METHODS[name](THREAT, **{**settings, **more})

    given = {"sample_ids": torch.arange(16).flip(0)} if "bank" in settings else {}
    net = conv_net(bn=True)
    step, optimizer = make(), sgd(net)
    data = batches(5)
    for x, y in data[:3]:
        train_batch(step, net, optimizer, x, y, **given)
    resumed, resumed_net = make(), copy.deepcopy(net)
    resumed_optimizer = sgd(resumed_net)
    resumed_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    resumed.load_state_dict(_saved(step.state_dict()))
    fresh, fresh_net = make(), copy.deepcopy(net)
    for x, y in data[3:]:
        losses = train_batch(step, net, optimizer, x, y, **given)
        again = train_batch(resumed, resumed_net, resumed_optimizer, x, y, **given)
        other = train_batch(fresh, fresh_net, sgd(fresh_net), x, y, **given)
        assert torch.equal(torch.stack(losses), torch.stack(again))
        assert not torch.equal(torch.stack(losses), torch.stack(other))  # the state matters
    assert resumed.batches == step.batches


@pytest.mark.parametrize("name", METHODS)
def test_a_state_that_does_not_fit_is_named(name):
    step = METHODS[name](THREAT)
    for state in ({}, {"batches": 1, "other": 2}, 3):
        with pytest.raises(
            ValueError, match=r"state must be what state_dict\(\) gave, with .*batches"
        ):
            step.load_state_dict(state)


def test_banks_that_do_not_fit_a_state_are_named():
    with_bank = training.FastAT(THREAT, bank=PerturbationBank(4, SHAPE))
    without = training.FastAT(THREAT)
    for step, state in ((with_bank, without.state_dict()), (without, with_bank.state_dict())):
        with pytest.raises(ValueError, match="a perturbation bank and this step none, or the rev"):
            step.load_state_dict(state)
    other = training.FastAT(THREAT, bank=PerturbationBank(5, SHAPE))
    with pytest.raises(ValueError, match=r"bank of \(4, 1, 8, 8\); this one is \(5, 1, 8, 8\)"):
        other.load_state_dict(with_bank.state_dict())
    assert other.batches == 0


def _start(step, x, **more):
    """Where the craft of the next batch starts."""
    seen = []
    model = conv_net()
    model.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().clone()))
    step.loss(model, x, torch.zeros(len(x), dtype=torch.int64), **more)
    return seen[1] if isinstance(step, training.TRADES) else seen[0]  # first its clean pass


_RANDOM = ("FastAT", "NFGSM", "PGDAT", "TRADES", "MART", "YOPO")


@pytest.mark.parametrize("name", _RANDOM)
def test_noise_is_a_function_of_seed_batch_and_sample_id(name):
    x = torch.full((6, *SHAPE), 0.5)
    torch.manual_seed(0)
    step = METHODS[name](THREAT, seed=3)
    first, second = _start(step, x), _start(step, x)
    assert not torch.equal(first, second) and not torch.equal(first[0], first[1])
    torch.manual_seed(1)  # the global generator changes nothing
    again = METHODS[name](THREAT, seed=3)
    assert torch.equal(_start(again, x), first) and torch.equal(_start(again, x), second)
    assert not torch.equal(_start(METHODS[name](THREAT, seed=4), x), first)
    # ids key the noise: any order, any batch
    ids = torch.tensor([4, 0, 5])
    some = _start(METHODS[name](THREAT, seed=3), x[:3], sample_ids=ids)
    assert torch.equal(some, first[ids])


@pytest.mark.parametrize("name", _RANDOM)
def test_two_seeds_share_no_batch(name):
    """Seeds are keys, not offsets: batch 1 of seed 3 is not batch 0 of seed 4."""
    x = torch.full((2, *SHAPE), 0.5)
    step = METHODS[name](THREAT, seed=3)
    _start(step, x)
    assert not torch.equal(_start(step, x), _start(METHODS[name](THREAT, seed=4), x))


@pytest.mark.parametrize("name", CRAFTED)
def test_a_craft_alone_is_what_the_next_loss_trains_on(name):
    ((x, y),) = batches(1)
    net, step = conv_net(), METHODS[name](THREAT)
    crafted = step.craft(net, x, y)
    seen = []
    net.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().clone()))
    step.loss(net, x, y)
    assert torch.equal(seen[-1], crafted.x_adv)
    if name != "NFGSM":
        assert fastadv.contains(THREAT, crafted.x_adv, x).all()
