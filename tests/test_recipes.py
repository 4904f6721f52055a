"""Each recipe of docs/recipes.md runs by itself, twice, prints what it says, and claims are so."""

import contextlib
import functools
import re
import tempfile
from pathlib import Path
from typing import Any

import pages
import pytest
import torch

import fastadv
from fastadv.models import digits_net

_RECIPES = dict(
    section.split("\n", 1)
    for section in (pages.ROOT / "docs" / "recipes.md").read_text().split("\n## ")[1:]
)
SAVED, TRANSFER, NORMALISED, CURVE, LOADER = _RECIPES
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
# how far a figure may be from the page's, on another CPU: two samples, or what training carries on
_TOLERANCES = {SAVED: 2, TRANSFER: 15, NORMALISED: 5, CURVE: 4, LOADER: 2}


@functools.cache
def _ran(title: str) -> tuple[dict[str, Any], str, str]:
    """A recipe's names, and what it prints in a session of its own, and there once more."""
    names: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        first, again = ("".join(pages.run(_RECIPES[title], names)) for _ in range(2))
        names["files in the folder"] = sorted(path.name for path in Path().iterdir())
    return names, first, again


def _figures(title: str) -> list[list[float]]:
    """The numbers of each line that a recipe prints."""
    return [[float(n) for n in _NUMBER.findall(line)] for line in _ran(title)[1].splitlines()]


@pytest.mark.parametrize("title", _RECIPES)
def test_a_recipe_prints_what_stands_beside_it(title):
    _, printed, again = _ran(title)
    shown = "".join(pages.shown(_RECIPES[title]))
    assert again == printed
    assert _NUMBER.sub("#", printed) == _NUMBER.sub("#", shown)
    for got, wanted in zip(_NUMBER.findall(printed), _NUMBER.findall(shown), strict=True):
        assert abs(float(got) - float(wanted)) <= _TOLERANCES[title], (got, wanted)


@pytest.mark.parametrize("title", _RECIPES)
def test_a_recipe_is_short(title):
    first = pages.blocks(_RECIPES[title])[0]
    assert 5 <= sum(bool(line.strip()) for line in first.splitlines()) <= 25


def test_images_attacked_through_rounding_stay_adversarial_and_some_others_do_not():
    (saved, wrong, inside), (saved_through, wrong_through, inside_through) = _figures(SAVED)
    assert wrong < saved == inside
    assert wrong_through == saved_through == inside_through


def test_rounding_without_bpda_warns_or_is_refused():
    names = _ran(SAVED)[0]
    model, x, y = (names[k] for k in ("model", "x", "y"))
    attack = fastadv.pgd(names["threat"], steps=2)
    with pytest.warns(fastadv.AttackWarning, match="zero_gradient"):
        attack(lambda z: model((z * 255).round() / 255), x, y)
    with pytest.raises(ValueError, match=r"no gradient.*fastadv\.BPDA"):
        attack(lambda z: model(names["as_saved"](z)), x, y)


def test_all_steps_fool_the_other_network_more_often_and_ones_own_no_more():
    (clean, _), (mine, other), (mine_last, other_last) = (line[-2:] for line in _figures(TRANSFER))
    assert other_last > other + 50
    assert mine_last == mine


def test_last_iterates_of_a_flat_loss_and_against_a_robust_network_gain_little():
    names = _ran(TRANSFER)[0]
    mine, other, x, y = (names[k] for k in ("mine", "other", "x", "y"))
    wrong = []
    for keep in ("first_success", "last"):
        attack = fastadv.pgd(fastadv.Linf(0.15), steps=20, keep=keep, loss="margin")
        wrong.append(int((other(attack(mine, x, y)).argmax(1) != y).sum()))
    assert abs(wrong[1] - wrong[0]) <= 5
    fooled = (digits_net(weights="fast-at")(names["x_adv"]).argmax(1) != y).float().mean()
    assert names["keep"] == "last" and fooled < 0.1


def test_forgotten_normalisation_gives_other_figures_and_widened_bounds_a_smaller_eps():
    (clean, robust), error, (wide_clean, wide), (raw_clean, raw) = _figures(NORMALISED)
    assert error and wide_clean == clean and wide > robust + 20
    assert raw_clean < clean - 2 and raw != robust
    assert 1 / 3 < _ran(NORMALISED)[0]["std"][0] < 0.4


def test_the_raw_images_give_no_warning(recwarn):
    names = _ran(NORMALISED)[0]
    fastadv.evaluate(names["net"], (names["x"][:50], names["y"][:50]), names["attack"])
    assert not recwarn.list


def test_the_curve_falls_costs_little_and_is_drawn():
    names = _ran(CURVE)[0]
    curve = names["curve"]
    assert list(curve.robust_accuracy) == sorted(curve.robust_accuracy, reverse=True)
    assert curve.relative_cost < 3  # of 4
    low, high = curve.confidence_intervals[2]
    assert 0.2 < high - low < 0.25
    assert "curve.png" in names["files in the folder"]


def test_without_ids_the_bits_depend_on_how_the_data_were_cut():
    names = _ran(LOADER)[0]
    attack, model, x, y = (names[k] for k in ("attack", "model", "x", "y"))
    cut = torch.cat([attack(model, *part) for part in zip(x.split(7), y.split(7), strict=True)])
    same = (cut == names["whole"]).flatten(1).all(1)
    assert torch.equal(names["whole"], attack(model, x, y)) and same.sum() < 60
