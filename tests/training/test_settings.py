"""Settings: reprs that can be pasted back, clear errors, warm-up."""

import copy

import pytest
import torch
from training_problems import (
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
from fastadv.training import AWP, CleanMixing, GradAlign, PerturbationBank

_STEPS = [
    training.FastAT(THREAT),
    training.FastAT(THREAT, step_size=0.07, clamp_start=True, eps_warmup=3, bn="eval"),
    training.NFGSM(THREAT, noise=1.5, seed=7),
    training.PGDAT(fastadv.L2(0.5), steps=2, random_start=False, label_smoothing=0.1),
    training.PGDAT(THREAT, modifiers=[AWP(0.02), GradAlign(0.3), CleanMixing(0.25)], steps=2),
    training.PGDAT(THREAT, bank=PerturbationBank(16, SHAPE), precision="bf16"),
    training.TRADES(fastadv.Linf(0.1, bounds=(-1.0, 2.0)), beta=3.0, steps=2),
    training.MART(THREAT, steps=2, step_size=0.05),
    training.FreeAT(THREAT, replays=2),
    training.YOPO(THREAT, first_layer="0", outer=2, inner=1),
]


@pytest.mark.parametrize("step", _STEPS, ids=repr)
def test_a_repr_can_be_pasted_back_and_gives_an_equal_step(step):
    pasted = eval(repr(step), {"fastadv": fastadv})
    assert type(pasted) is type(step) and repr(pasted) == repr(step)
    ((x, y),) = batches(1)
    more = {"sample_ids": torch.arange(16)} if getattr(step, "bank", None) is not None else {}
    losses = [next(iter(s(conv_net(), x, y, **more))) for s in (copy.deepcopy(step), pasted)]
    assert torch.equal(*losses)


def test_a_repr_names_only_what_is_not_the_default():
    assert repr(training.FastAT(THREAT)) == "fastadv.training.FastAT(fastadv.Linf(0.1))"
    assert repr(training.TRADES(THREAT, beta=3.0)).endswith("(fastadv.Linf(0.1), beta=3.0)")


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"eps_warmup": -1}, ValueError, "eps_warmup must be an integer of at least 0; got -1"),
        ({"eps_warmup": 1.5}, ValueError, "eps_warmup must be an integer"),
        ({"precision": "fp8"}, ValueError, "precision must be one of .*'fp8'"),
        ({"label_smoothing": 1.0}, ValueError, r"label_smoothing must lie in \[0, 1\); got 1.0"),
        (
            {"label_smoothing": -0.1},
            ValueError,
            "label_smoothing must be finite and >= 0; got -0.1",
        ),
        ({"label_smoothing": "0.1"}, TypeError, "label_smoothing must be a float; got '0.1'"),
        ({"step_size": -1.0}, ValueError, "step_size must be finite and >= 0; got -1.0"),
        ({"step_size": float("nan")}, ValueError, "step_size must be finite"),
        ({"step_size": "big"}, TypeError, "step_size must be a float; got 'big'"),
    ],
    ids=str,
)
def test_a_bad_setting_of_any_method_is_named(name, settings, error, message):
    with pytest.raises(error, match=message):
        METHODS[name](THREAT, **settings)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    ("threat", "error", "message"),
    [
        (0.1, TypeError, "threat must be fastadv.Linf, L2 or L1 with a radius"),
        (fastadv.Linf, TypeError, "threat must be fastadv.Linf, L2 or L1 with a radius"),
        (fastadv.Linf(torch.tensor([0.1, 0.2])), ValueError, "threat must have one eps"),
        (fastadv.Linf(torch.tensor(0.1)), ValueError, "one eps for all samples, a float; got"),
    ],
    ids=repr,
)
def test_a_bad_threat_is_named(name, threat, error, message):
    with pytest.raises(error, match=message):
        METHODS[name](threat)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: fastadv.Linf(8), ValueError, r"give eps in input units \(8/255, not 8\)"),
        (lambda: training.PGDAT(THREAT, steps=0), ValueError, "steps .* at least 1; got 0"),
        (lambda: training.PGDAT(THREAT, steps=True), ValueError, "steps must be an integer"),
        (lambda: training.FastAT(THREAT, bn="frozen"), ValueError, "bn must be one of .*'frozen'"),
        (lambda: training.FastAT(THREAT, seed=0.5), ValueError, "seed must be an integer; got 0.5"),
        (lambda: training.FreeAT(THREAT, replays=0), ValueError, "replays .* at least 1; got 0"),
        (lambda: training.NFGSM(THREAT, noise=-1.0), ValueError, "noise must be finite and >= 0"),
        (lambda: training.NFGSM(THREAT, noise=None), TypeError, "noise must be a float; got None"),
        (lambda: training.TRADES(THREAT, beta=None), TypeError, "beta must be a float; got None"),
        (lambda: training.NFGSM(fastadv.L2(0.5)), ValueError, "NFGSM is defined for fastadv.Linf"),
        (
            lambda: training.YOPO(THREAT, first_layer="0", outer=0),
            ValueError,
            "outer .* at least 1",
        ),
        (
            lambda: training.YOPO(THREAT, first_layer="0", inner=0),
            ValueError,
            "inner .* at least 1",
        ),
        (lambda: AWP(0.0), ValueError, r"gamma must lie in \(0, 1\); got 0.0"),
        (lambda: GradAlign(-1.0), ValueError, "weight must not be negative; got -1.0"),
        (lambda: CleanMixing(1.5), ValueError, r"weight must lie in \[0, 1\]; got 1.5"),
        (lambda: PerturbationBank(0, SHAPE), ValueError, "size must be at least 1; got 0"),
        (lambda: training.ema(conv_net(), decay=1.0), ValueError, r"decay must lie in \(0, 1\)"),
        (lambda: training.swa(torch.relu), TypeError, "model must be an nn.Module"),
        (lambda: training.FastAT(THREAT, modifiers=AWP()), TypeError, r"modifiers .*AWP\(0.01\)"),
        (lambda: training.FastAT(THREAT, modifiers=["awp"]), TypeError, "modifiers .*'awp'"),
        (lambda: training.FastAT(THREAT, bank=3), TypeError, "bank must be a PerturbationBank"),
    ],
)
def test_a_bad_argument_is_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


class _Seen(type(THREAT)):
    """Keeps (eps, step size) of every step."""

    def step_(self, x_adv, grad, x, *, step_size, eps, **more):
        _SEEN.append((eps, step_size))
        return super().step_(x_adv, grad, x, step_size=step_size, eps=eps, **more)


_SEEN: list[tuple[float, float]] = []


@pytest.mark.parametrize(
    ("name", "settings", "eps", "step_size"),
    [
        ("FastAT", {}, 0.1, 0.125),
        ("FastAT", {"step_size": 0.05}, 0.1, 0.05),
        ("NFGSM", {}, 0.6, 0.1),  # a ball that nothing reaches: 2 (noise eps + step)
        ("PGDAT", {"steps": 1}, 0.1, 0.25),
        ("TRADES", {"steps": 1}, 0.1, 0.025),
        ("MART", {"steps": 1}, 0.1, 0.025),
        ("YOPO", {"outer": 1, "inner": 1}, 0.1, 0.025),
        ("FreeAT", {"replays": 1}, 0.1, 0.1),
    ],
    ids=str,
)
def test_eps_and_step_grow_linearly_over_the_warm_up(name, settings, eps, step_size):
    net, step = conv_net(), METHODS[name](_Seen(0.1), eps_warmup=4, **settings)
    _SEEN.clear()
    for x, y in batches(6):
        train_batch(step, net, sgd(net), x, y)
    expected = [(eps * f, step_size * f) for f in (0.25, 0.5, 0.75, 1.0, 1.0, 1.0)]
    for seen, value in zip(_SEEN, expected, strict=True):
        assert seen == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("name", ["FastAT", "NFGSM", "PGDAT", "YOPO"])
def test_the_start_noise_grows_with_eps(name):
    """The largest distance of a start from x is the radius of its batch."""
    largest = []
    x, y = torch.full((16, *SHAPE), 0.5), torch.arange(16) % 5
    net = conv_net()
    handle = net.register_forward_pre_hook(lambda module, args: largest.append(args[0] - x))
    step = METHODS[name](THREAT, eps_warmup=2)
    firsts = []
    for _ in range(3):
        largest.clear()
        step.loss(net, x, y)
        firsts.append(float(largest[0].detach().abs().max()))
    handle.remove()
    radius = 0.2 if name == "NFGSM" else 0.1
    assert firsts == pytest.approx([radius / 2, radius, radius], rel=0.01)
    assert all(
        f <= r * (1 + 1e-6) for f, r in zip(firsts, [radius / 2, radius, radius], strict=True)
    )
