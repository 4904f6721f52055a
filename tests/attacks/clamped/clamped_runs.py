"""Attacks on the digits, run on the network itself and behind a clamp."""

import functools
import warnings

import torch
from clamping_models import trained
from members import GRADIENT_MEMBERS, member, one_of_each_kind

import fastadv
from fastadv.attacks import Attack
from fastadv.attacks.attack import norms_of
from fastadv.data import load_digits

N = 90
EPS, EPS_L2, EPS_L1 = fastadv.Linf(0.12), fastadv.L2(0.6), fastadv.L1(1.5)


def _threat(name: str) -> fastadv.Linf:
    """Of the first norm that the attack has, where it breaks some and not all."""
    of_norm = {"linf": EPS, "l2": EPS_L2, "l0": fastadv.L0(4)}
    return next(threat for norm, threat in of_norm.items() if norm in norms_of(name))  # type: ignore[return-value]


STEPS = dict(steps=10)
ATTACKS = {
    # every kind of attack, with its budget where nothing below says otherwise
    **{
        name: member(name, "linf", threat=_threat(name))
        for name in one_of_each_kind(GRADIENT_MEMBERS)
    },
    "fgsm": fastadv.fgsm(EPS),
    "bim": fastadv.bim(EPS, **STEPS),
    "pgd": fastadv.pgd(EPS, **STEPS),
    "pgd, last": fastadv.pgd(EPS, keep="last", **STEPS),
    "pgd, best": fastadv.pgd(EPS, keep="best", restarts=2, steps=6),
    "pgd, eot": fastadv.pgd(EPS, eot=2, steps=6),
    "mifgsm": fastadv.mifgsm(EPS, **STEPS),
    "pgd, l2": fastadv.pgd(EPS_L2, **STEPS),
    "pgd, l1": fastadv.pgd(EPS_L1, **STEPS),
    "apgd_ce": fastadv.apgd_ce(EPS, **STEPS),
    "apgd_ce, l2": fastadv.apgd_ce(EPS_L2, **STEPS),
    "apgd_ce, l1": fastadv.apgd_ce(EPS_L1, **STEPS),
    "apgd_t": fastadv.apgd_t(EPS, n_target_classes=3, **STEPS),
    "fab_t": fastadv.fab_t(EPS, n_target_classes=3, **STEPS),
    "fab": fastadv.fab(EPS_L2, steps=6),
    "deepfool": fastadv.deepfool(EPS, **STEPS),
    "cw": fastadv.cw(EPS, steps=12, search_steps=1, first_constant=10.0, step_size=0.02),
    "sigma_zero": fastadv.sigma_zero(fastadv.L0(2), steps=24),
    "authors": fastadv.apgd_ce(EPS, keep="authors", **STEPS),
    "autoattack": fastadv.autoattack(
        EPS,
        version="custom",
        attacks=[fastadv.apgd_ce(EPS, **STEPS), fastadv.fab_t(EPS, n_target_classes=2, steps=6)],
    ),
}


def digits(n: int = N) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = load_digits("test")
    return x[:n], y[:n]


def run(
    attack: Attack, model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, **more
) -> tuple[fastadv.AttackResult, list[str]]:
    """(result, codes of the warnings)."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = attack.run(model, x, y, **more)
    return result, [getattr(w.message, "code", str(w.message)) for w in caught]


@functools.cache
def found_bare(name: str, n: int = N) -> fastadv.AttackResult:
    """What attack `name` finds on the network itself, in which no clamp rule has a part."""
    result, codes = run(ATTACKS[name], trained(), *digits(n))
    assert codes == [] and result.inset == 0.0
    return result


def assert_alike(
    result: fastadv.AttackResult, codes: list[str], expected: fastadv.AttackResult, lost: bool
) -> None:
    """The verdicts of `expected` but for one, and a warning where the clamp `lost` a gradient."""
    assert codes == ["clamped_input"] * lost
    assert (result.inset > 0) == lost
    assert int((result.success != expected.success).sum()) <= 1
