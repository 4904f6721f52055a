"""Radii and bounds of elements in training: as the attacks take them, scaled by warm-up."""

import copy

import pytest
import torch
from graphed_pair import Pair
from torch.utils._python_dispatch import TorchDispatchMode
from training_problems import (
    METHODS,
    THREAT,
    batches,
    conv_net,
    largest_difference,
    sgd,
    train_batch,
    uniform,
)

import fastadv
from fastadv import training
from fastadv.training import regions

EPS = 0.02 + 0.1 * torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(3))
EPS[0, 0, 0, :4] = 0.0  # stay
LOWER = torch.zeros(1, 1, 8, 1)
UPPER = 1.0 - 0.3 * torch.rand(1, 1, 8, 1, generator=torch.Generator().manual_seed(4))
LINF = fastadv.Linf(EPS, bounds=(LOWER, UPPER))
L2 = fastadv.L2(4 * EPS, bounds=(LOWER, UPPER))
TAKE = [name for name in METHODS if name != "YOPO"]
ROUNDING = 1e-6


def data(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.minimum(x, UPPER), y) for x, y in batches(count)]


def plain_pgd(net, x, y, *, step, eps, steps):
    """The loop that everyone writes."""
    x_adv = x.clone()
    lower, upper = torch.maximum(x - eps, LOWER), torch.minimum(x + eps, UPPER)
    for _ in range(steps):
        leaf = x_adv.clone().requires_grad_()
        loss = torch.nn.functional.cross_entropy(net(leaf), y, reduction="sum")
        (grad,) = torch.autograd.grad(loss, leaf)
        x_adv = torch.clamp(x_adv + step * grad.sign(), lower, upper)
    return x_adv


@pytest.mark.parametrize("warmup", [0, 4])
@pytest.mark.parametrize("step_size", [None, 0.03])
def test_the_bits_of_a_plain_loop(step_size, warmup):
    net, (x, y) = conv_net(), data(1)[0]
    step = training.PGDAT(LINF, steps=5, step_size=step_size, random_start=False, eps_warmup=warmup)
    factor = 1 / warmup if warmup else 1.0
    length = EPS * factor * 0.5 if step_size is None else torch.where(EPS > 0, 0.03 * factor, 0.0)
    expected = plain_pgd(net, x, y, step=length, eps=EPS * factor, steps=5)
    batch = step.craft(net, x, y)
    assert torch.equal(batch.x_adv, expected)
    assert torch.equal(batch.eps, EPS * factor) and torch.equal(step.effective_eps, EPS * factor)


@pytest.mark.parametrize("threat", [LINF, L2], ids=["linf", "l2"])
def test_the_batch_is_that_of_the_attack(threat):
    net, (x, y) = conv_net(), data(1)[0]
    crafted = training.PGDAT(threat, steps=5, random_start=False).craft(net, x, y)
    attack = fastadv.pgd(threat, steps=5, random_start=False, keep="last")
    assert torch.equal(crafted.x_adv, attack(net, x, y))


@pytest.mark.parametrize("threat", [LINF, L2], ids=["linf", "l2"])
@pytest.mark.parametrize("name", TAKE)
def test_every_method_stays_inside(name, threat):
    threat = LINF if name == "NFGSM" else threat
    net, seen = conv_net(), []
    net.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach().clone()))
    step, optimizer = METHODS[name](threat), sgd(net)
    for x, y in data(2):
        seen.clear()
        train_batch(step, net, optimizer, x, y)
        last = seen[-1]  # the training pass
        assert all(torch.equal(given[..., 0, :4], x[..., 0, :4]) for given in seen)
        assert any((given != x).flatten(1).any(1).all() for given in seen)
        if name == "FreeAT":  # whose first input may lie outside the bounds of another x
            last = x + step.delta
        assert ((last >= LOWER - ROUNDING) & (last <= UPPER + ROUNDING)).all()
        radius = 3.0 if name == "NFGSM" else 1.0
        moved = (last - x).abs() / EPS.clamp_min(1e-9)
        if threat.norm == "linf":
            assert (moved <= radius + 1e-4).all()
        else:
            assert (moved.flatten(1).norm(dim=1) / 4 <= 1 + 1e-4).all()


@pytest.mark.parametrize("name", ["FastAT", "PGDAT", "NFGSM"])
def test_starts_are_uniform_in_each_radius_which_warm_up_scales(name):
    free, (x, y) = fastadv.Linf(EPS, bounds=None), data(1)[0]
    step, net = METHODS[name](free, eps_warmup=4), conv_net()
    x, y, seen = x.repeat(16, 1, 1, 1), y.repeat(16), []
    step.craft(net, x, y)
    step.advance()  # the second of four batches: half of the radii
    hook = net.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach().clone()))
    step.craft(net, x, y)
    hook.remove()
    reach = 0.5 * EPS * (2.0 if name == "NFGSM" else 1.0)
    delta = (seen[0] - x).abs()
    assert (delta <= reach + ROUNDING).all()
    moves = EPS > 0
    shares = (delta / reach.clamp_min(1e-9)).mean(0, keepdim=True)[moves]
    assert (shares - 0.5).abs().max() < 0.1  # of 256 samples: five standard deviations are 0.09
    assert (delta.amax(0, keepdim=True)[~moves] == 0).all()


@pytest.mark.parametrize("name", ["FastAT", "NFGSM", "PGDAT", "FreeAT"])
def test_one_radius_written_out_is_one_radius(name):
    nets = conv_net(), conv_net()
    written = fastadv.Linf(torch.full((1, 1, 8, 8), 0.1), bounds=(torch.zeros(1, 1, 1, 1), 1.0))
    for net, threat in zip(nets, (THREAT, written), strict=True):
        step, optimizer = METHODS[name](threat), sgd(net)
        for x, y in batches(2):
            train_batch(step, net, optimizer, x, y)
    assert largest_difference(*nets) < 1e-5


def test_a_given_step_size_of_nfgsm_is_not_projected():
    net, (x, y) = conv_net(), data(1)[0]
    free = fastadv.Linf(EPS, bounds=None)
    batch = training.NFGSM(free, noise=0.0, step_size=0.5).craft(net, x, y)
    moved = (batch.x_adv - x).abs()[(EPS > 0).expand(x.shape)]
    assert torch.allclose(moved, torch.full_like(moved, 0.5))


@pytest.mark.parametrize("name", ["PGDAT", "TRADES", "FreeAT"])
def test_recorded_steps_are_the_eager_ones(tape, name):
    pair = Pair(lambda: METHODS[name](LINF))
    pair.train(data(7))
    assert pair.run.replays >= 4


@pytest.mark.parametrize("name", ["FastAT", "FreeAT"])
def test_a_resumed_step_goes_on(name):
    net = conv_net()
    whole, optimizer = METHODS[name](LINF), sgd(net)
    first, (x, y) = data(2)
    train_batch(whole, net, optimizer, *first)
    again, other = METHODS[name](LINF), copy.deepcopy(net)
    again.load_state_dict(whole.state_dict())
    mine = train_batch(whole, net, sgd(net), x, y)
    theirs = train_batch(again, other, sgd(other), x, y)
    assert all(map(torch.equal, mine, theirs))
    assert repr(whole) == repr(again) and "torch.tensor" in repr(whole)


def test_with_modifiers_and_a_mask():
    net, (x, y) = conv_net(), data(1)[0]
    mask = uniform(x[:1, :1], 1.0, 5) > 0
    step = training.PGDAT(LINF, steps=2, modifiers=[training.GradAlign(), training.AWP()])
    assert step.loss(net, x, y, mask=mask).isfinite()
    x_adv, outside = step.craft(net, x, y, mask=mask).x_adv, ~mask.expand(x.shape)
    assert torch.equal(x_adv[outside], x[outside])


def test_what_rounding_took_out_of_the_bounds_is_clamped():
    net, (x, y) = conv_net(), data(1)[0]
    step, above = training.PGDAT(LINF, steps=1), UPPER.expand(x.shape) * (1 + 2e-7)
    with pytest.warns(fastadv.AttackWarning, match="round"):
        first = step.craft(net, above, y)
    assert (first.x_adv <= UPPER).all() and (step.craft(net, above, y).x <= UPPER).all()


class _Reads(TorchDispatchMode):
    """Counts what waits for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func._schema.name in ("aten::_local_scalar_dense", "aten::nonzero")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", TAKE)
def test_nothing_is_read_after_the_first_batch(name):
    step, net = METHODS[name](LINF, eps_warmup=9), conv_net()
    first, (x, y) = data(2)
    train_batch(step, net, sgd(net), *first)
    with _Reads() as reads:
        for loss in step(net, x, y):
            loss.backward()
    assert reads.count == 0


def test_radii_are_read_once(monkeypatch):
    calls = []
    made = regions.region_of
    monkeypatch.setattr(regions, "region_of", lambda *a, **k: calls.append(a) or made(*a, **k))
    step, net = training.FastAT(LINF), conv_net()
    for x, y in data(3):
        step.loss(net, x, y)
    assert len(calls) == 1


def test_a_sentinel_watches_and_its_rollback_refuses():
    (x, y), net = data(1)[0], conv_net()
    step, optimizer = training.FastAT(LINF), sgd(net)
    sentinel = training.Sentinel(LINF, x, y, every=1)
    train_batch(step, net, optimizer, x, y)
    assert sentinel.watch(step, net, optimizer) is step
    assert 0 <= sentinel.history[0].pgd <= 1
    with pytest.raises(ValueError, match="use on_collapse='warn' or 'stop'"):
        training.Sentinel(LINF, x, y, every=1, on_collapse="rollback")


def test_what_takes_no_elements_says_so():
    net, (x, y) = conv_net(), data(1)[0]
    with pytest.raises(ValueError, match="YOPO takes one eps and one pair of bounds"):
        METHODS["YOPO"](LINF)
    with pytest.raises(ValueError, match="one eps and one pair of bounds in L1"):
        training.PGDAT(fastadv.L1(EPS))
    with pytest.raises(ValueError, match="bank keeps perturbations in units of one eps"):
        training.FastAT(LINF, bank=training.PerturbationBank(16, (1, 8, 8)))
    with pytest.raises(ValueError, match=r"batch axis of 1 in training, \(1, 1, 8, 8\); got \(16"):
        training.PGDAT(fastadv.Linf(EPS.repeat(16, 1, 1, 1)))
    with pytest.raises(ValueError, match="one eps for all samples, a float"):
        training.PGDAT(fastadv.Linf(EPS.flatten()))
    with pytest.raises(ValueError, match="eps must be a float, or one value|broadcast to x"):
        training.PGDAT(fastadv.L2(EPS[..., :3])).loss(net, x, y)
    with pytest.raises(ValueError, match="x must lie in the bounds of its elements"):
        training.PGDAT(LINF).loss(net, x + 1, y)
