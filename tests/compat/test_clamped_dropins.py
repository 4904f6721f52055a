"""Drop-ins on models that clamp give the numbers that they give on torch 2.13, on any torch."""

import sys
import warnings
from pathlib import Path

import pytest
import torch

from fastadv.compat.autoattack import AutoAttack
from fastadv.compat.torchattacks import BIM, FGSM, MIFGSM, PGD, PGDL2
from fastadv.data import load_digits

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "attacks" / "clamped"))

from clamping_models import MEAN, STD, Behind, clamping, trained  # noqa: E402

N = 60


def _images():
    x, y = load_digits("test")
    return x[:N], y[:N]


def _broken(attack, images, y, net):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        adv = attack(images, y)
    codes = [getattr(w.message, "code", str(w.message)) for w in caught]
    return (net(adv).argmax(1) != y), codes


_MAKE = {
    "FGSM": lambda model: FGSM(model, eps=0.12),
    "BIM": lambda model: BIM(model, eps=0.12, alpha=0.02, steps=8),
    "PGD": lambda model: PGD(model, eps=0.12, alpha=0.02, steps=8),
    "MIFGSM": lambda model: MIFGSM(model, eps=0.12, alpha=0.02, steps=8),
    "PGDL2": lambda model: PGDL2(model, eps=0.6, alpha=0.15, steps=8),
}


@pytest.mark.parametrize("name", _MAKE)
def test_torchattacks_names_break_what_they_break_without_the_clamp(name, clamp_rule_in_force):
    x, y = _images()
    net = trained()
    bare, _ = _broken(_MAKE[name](net), x, y, net)
    assert 10 < int(bare.sum()) < N - 10
    for form in ("clamp", "hardtanh"):
        model, lossy = clamping(form, net)
        broken, codes = _broken(_MAKE[name](model), x, y, model)
        assert int((broken != bare).sum()) <= 1
        assert codes == ["clamped_input"] * (clamp_rule_in_force in lossy)


def test_images_that_went_through_a_normalisation_lie_at_the_bounds_still(clamp_rule_in_force):
    """x * std + mean is off by some roundings."""
    x, y = _images()
    low, high = (0 - MEAN) / STD, (1 - MEAN) / STD
    net = Behind(lambda z: z * STD + MEAN, trained())
    clamps = Behind(lambda z: torch.nn.functional.hardtanh(z, low, high), net)
    found = []
    for model in (net, clamps):
        attack = _MAKE["BIM"](model)
        attack.set_normalization_used([MEAN], [STD])
        found.append(_broken(attack, (x - MEAN) / STD, y, net))
    (bare, none), (broken, codes) = found
    assert none == [] and codes == ["clamped_input"]
    assert int((broken != bare).sum()) <= 1


def test_the_authors_name_logs_it_and_keeps_it_in_its_state(tmp_path):
    x, y = _images()
    model, _ = clamping("hardtanh", trained())

    def run(model, path=None):
        adversary = AutoAttack(
            model,
            norm="Linf",
            eps=0.12,
            version="custom",
            attacks_to_run=["apgd-ce", "fab-t"],
            device="cpu",
            seed=0,
            verbose=True,
            log_path=str(tmp_path / "log.txt"),
        )
        adversary.apgd.n_iter = adversary.fab.n_iter = 8
        x_adv = adversary.run_standard_evaluation(x, y, bs=32, state_path=path)
        return model(x_adv).argmax(1) != y

    bare = run(trained())
    assert "clamped_input" not in (tmp_path / "log.txt").read_text()
    broken = run(model, tmp_path / "state.pt")
    assert int((broken != bare).sum()) <= 1
    assert (tmp_path / "log.txt").read_text().count(f"clamped_input: {N} of {N} samples") == 1
    assert torch.load(tmp_path / "state.pt", weights_only=True)["progress"]["inset"] > 0
