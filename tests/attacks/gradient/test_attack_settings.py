"""The settings of an attack: repr, equality, pickles, and the step sizes they default to."""

import dataclasses
import pickle

import pytest
import torch

import fastadv

_REPRS = [
    fastadv.fgsm(fastadv.Linf(8 / 255)),
    fastadv.rfgsm(fastadv.Linf(8 / 255), steps=3, seed=-1),
    fastadv.bim(fastadv.L1(12.0), steps=7, sparsity=0.1),
    fastadv.pgd(fastadv.Linf(0.1, bounds=None), loss="margin", kappa=0.5),
    fastadv.pgd(fastadv.L2(0.5, bounds=(-1.0, 1.0)), steps=50, step_size=1 / 3, restarts=10),
    fastadv.pgd(
        fastadv.L2(0.5), random_start="sphere", clamp_start=False, guard=1e-10, keep="best"
    ),
    fastadv.pgd(fastadv.Linf(0.1), random_start=False, eot=4, label_smoothing=0.1),
    fastadv.mifgsm(fastadv.Linf(0.1), decay=0.5, keep="last", seed=1 << 70),
]


@pytest.mark.parametrize("attack", _REPRS, ids=repr)
def test_the_repr_can_be_pasted_back(attack):
    copy = eval(repr(attack), {"fastadv": fastadv})
    assert copy == attack and repr(copy) == repr(attack)
    assert hash(copy) == hash(attack)
    assert eval(repr(attack.threat), {"fastadv": fastadv}) == attack.threat


def test_reprs_leave_out_what_is_the_default():
    assert repr(fastadv.pgd(fastadv.Linf(0.1), steps=10)) == "fastadv.pgd(fastadv.Linf(0.1))"


def test_the_repr_of_per_sample_radii_can_be_pasted_back():
    eps = torch.tensor([0.1, 0.25])
    attack = fastadv.pgd(fastadv.Linf(eps), step_size=torch.tensor([0.01, 0.5]))
    names = {"fastadv": fastadv, "torch": torch, "tensor": torch.tensor}
    copy = eval(repr(attack), names)
    assert torch.equal(copy.threat.eps, eps)
    assert torch.equal(copy.step_size, attack.step_size)


def test_attacks_are_equal_if_their_settings_are():
    first, second = (fastadv.pgd(fastadv.Linf(0.1), steps=steps) for steps in (10, 11))
    assert first == fastadv.pgd(fastadv.Linf(0.1)) and first != second
    assert first != fastadv.pgd(fastadv.L2(0.1))
    assert first != fastadv.bim(fastadv.Linf(0.1))
    assert len({first, fastadv.pgd(fastadv.Linf(0.1)), second}) == 2
    eps = torch.tensor([0.1, 0.2])
    assert fastadv.Linf(eps) == fastadv.Linf(eps.clone())
    assert fastadv.Linf(eps) != fastadv.Linf(eps + 0.1)
    assert fastadv.pgd(fastadv.Linf(eps)) != fastadv.pgd(fastadv.Linf(0.1))


def test_attacks_are_frozen_and_pickled():
    attack = fastadv.pgd(fastadv.Linf(0.1), steps=3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        attack.steps = 4
    with pytest.raises(dataclasses.FrozenInstanceError):
        attack.threat.eps = 0.2
    assert pickle.loads(pickle.dumps(attack)) == attack
    assert dataclasses.replace(attack, steps=4) == fastadv.pgd(fastadv.Linf(0.1), steps=4)


def test_default_step_sizes_are_those_of_the_documentation():
    eps = 0.4
    assert fastadv.pgd(fastadv.Linf(eps), steps=5).effective_step_size == pytest.approx(0.2)
    assert fastadv.pgd(fastadv.L1(eps), steps=5).effective_step_size == pytest.approx(0.1)
    assert fastadv.mifgsm(fastadv.Linf(eps), steps=5).effective_step_size == pytest.approx(0.08)
    assert fastadv.rfgsm(fastadv.Linf(eps)).effective_step_size == pytest.approx(0.2)
    assert fastadv.fgsm(fastadv.Linf(eps)).effective_step_size == eps
