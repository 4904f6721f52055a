"""Randomness hides the gradient in noise; averaging passes (EOT) finds it again."""

import torch
from defences import Randomised

import fastadv

_EPS, _N, _PASSES = 0.15, 200, 20


def _accuracy(model, x, y) -> float:
    """Mean accuracy over `_PASSES` passes, on draws that no attack has seen."""
    devices = [x.device] if x.device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices=devices):
        torch.manual_seed(2**31 - 1)
        hits = sum((model(x).argmax(1) == y).float().mean() for _ in range(_PASSES))
    return float(hits / _PASSES)


def _survival(model, x, y, *, eot: int, steps: int, step_size: float, **more) -> float:
    attack = fastadv.pgd(
        fastadv.Linf(_EPS), steps=steps, step_size=step_size, eot=eot, seed=0, **more
    )
    return _accuracy(model, attack(model, x, y), y)


def test_averaging_16_passes_breaks_what_one_pass_does_not(randomised_mnist):
    """RATES"""
    net, x, y = randomised_mnist
    assert isinstance(net, Randomised)
    x, y = x[:_N], y[:_N]
    setting = {"steps": 3, "step_size": 0.05, "random_start": False, "keep": "last"}
    clean = _accuracy(net, x, y)
    survival = {eot: _survival(net, x, y, eot=eot, **setting) for eot in (1, 4, 16)}
    print(clean, survival)
    for st, a in ((2, 0.075), (2, 0.1), (3, 0.06), (4, 0.05), (1, 0.15)):
        s2 = dict(setting, steps=st, step_size=a)
        print(st, a, {eot: _survival(net, x, y, eot=eot, **s2) for eot in (1, 16)})
    assert clean >= 0.94
    assert survival[1] >= 0.45
    assert survival[16] <= 0.2
    assert survival[1] > survival[4] > survival[16]


def test_a_success_on_one_lucky_draw_does_not_last_but_one_on_16_mean_logits_does(
    randomised_mnist,
):
    """RATES"""
    net, x, y = randomised_mnist
    x, y = x[:_N], y[:_N]
    setting = {"steps": 20, "step_size": _EPS / 4}
    one, sixteen = (_survival(net, x, y, eot=eot, **setting) for eot in (1, 16))
    print("first_success", one, sixteen)
    print("last", *(_survival(net, x, y, eot=eot, keep="last", **setting) for eot in (1, 16)))
    assert one - sixteen >= 0.15


def test_the_same_seed_draws_the_same_defence(randomised_mnist):
    net, x, y = randomised_mnist
    attack = fastadv.pgd(fastadv.Linf(_EPS), steps=2, step_size=0.05, eot=2, keep="last")
    before = torch.get_rng_state()
    assert torch.equal(attack(net, x[:20], y[:20]), attack(net, x[:20], y[:20]))
    assert torch.equal(torch.get_rng_state(), before)
