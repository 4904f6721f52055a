"""What is no attack is refused wherever one is taken: what it is named, what came, what to do."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import fastadv
from fastadv import training
from fastadv.attacks.streaming import StreamingAttack
from fastadv.compat import autoattack, torchattacks
from fastadv.ensemble.constructor import AutoAttack
from fastadv.evaluation import at_radius

LINF = fastadv.Linf(0.1)
PGD = fastadv.pgd(LINF, steps=1)
ENSEMBLE = fastadv.autoattack(LINF, "custom", attacks=[PGD])
NET = nn.Sequential(nn.Flatten(), nn.Linear(16, 4))
X, Y = torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(4)


def unasked(model: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    raise AssertionError("no model is asked before the attack is seen to be one")


WRONG: dict[str, tuple[Any, str]] = {
    "stream": (PGD.streaming(), f"that it was made of, {PGD!r}"),
    "stream of an ensemble": (ENSEMBLE.streaming(), f"that it was made of, {ENSEMBLE!r}"),
    "constructor": (fastadv.pgd, "the function pgd: call it, fastadv.pgd(threat)"),
    "ensemble's constructor": (fastadv.autoattack, "call it, fastadv.autoattack(threat)"),
    "class": (type(PGD), "the class GradientAttack: give an attack, not its class"),
    "ensemble's class": (AutoAttack, "the class AutoAttack: give an attack, not its class"),
    "name": ("pgd", "'pgd', a name: give the attack itself"),
    "none": (None, "got None"),
    "function": (unasked, "the function unasked"),
    "threat": (LINF, f"a threat model: give an attack with it, fastadv.pgd({LINF!r})"),
    "peer's": (torchattacks.PGD(NET), "PGD of fastadv.compat.torchattacks"),
    "peer's class": (torchattacks.PGD, "the class PGD"),
    "data": (X, "Tensor of torch"),
}
ENTRIES: dict[str, tuple[Callable[[Any], object], str]] = {
    "evaluate": (lambda a: fastadv.evaluate(unasked, (X, Y), a, progress=False), "attack"),
    "robustness_curve": (lambda a: fastadv.robustness_curve(unasked, (X, Y), a, [0.1]), "attack"),
    "at_radius": (lambda a: at_radius(a, 0.1), "attack"),
    "autoattack": (lambda a: fastadv.autoattack(LINF, "custom", attacks=[PGD, a]), "attacks[1]"),
    "autoattack, no list": (lambda a: fastadv.autoattack(LINF, "custom", attacks=a), "attacks"),
}


CASES = [(w, e) for w in WRONG for e in ENTRIES if (w, e) != ("name", "autoattack")]  # an attack


@pytest.mark.parametrize(("wrong", "entry"), CASES)
def test_the_argument_what_came_and_what_to_do_are_named(entry: str, wrong: str):
    (call, argument), (value, words) = ENTRIES[entry], WRONG[wrong]
    if entry == "autoattack, no list" and isinstance(value, torch.Tensor):
        argument = "attacks[0]"  # a tensor is iterable
    with pytest.raises(TypeError, match=f"^{re.escape(argument)} must be .*{re.escape(words)}"):
        call(value)


@pytest.mark.parametrize("entry", ["evaluate", "robustness_curve", "at_radius"])
def test_several_attacks_where_one_is_taken(entry: str):
    with pytest.raises(TypeError, match=r"a list of 2: .*version='custom', attacks=\[...\]"):
        ENTRIES[entry][0]([PGD, PGD])


def test_an_ensemble_in_an_ensemble():
    with pytest.raises(TypeError, match=r"attacks\[1\].*give its attacks, \[\*ensemble.attacks\]"):
        ENTRIES["autoattack"][0](ENSEMBLE)


def test_one_attack_where_a_list_is_taken():
    with pytest.raises(TypeError, match=r"a list of attacks or names, .*pgd\(.*\) alone"):
        ENTRIES["autoattack, no list"][0](PGD)
    assert fastadv.autoattack(LINF, "custom", attacks=iter([PGD])).attacks == (PGD,)


@pytest.mark.parametrize("wrong", WRONG)
def test_a_stream_is_made_of_an_attack(wrong: str):
    with pytest.raises(TypeError, match="attack must be an attack or an ensemble, whose stream"):
        StreamingAttack(WRONG[wrong][0])


@pytest.mark.parametrize("wrong", WRONG)
def test_a_training_step_is_no_attack(wrong: str):
    value, optimizer = WRONG[wrong][0], torch.optim.SGD(NET.parameters(), lr=0.1)
    sentinel = training.Sentinel(LINF, X, Y, every=1)
    for watch in (sentinel.watch, sentinel.finish):
        with pytest.raises(TypeError, match="step must be one of fastadv.training: .*; got "):
            watch(value, NET, optimizer)
    with pytest.raises(TypeError, match="step must be one of fastadv.training: .*; got "):
        training.graphed(value, optimizer)


def test_the_sentinel_watches_the_step_that_is_recorded():
    optimizer = torch.optim.SGD(NET.parameters(), lr=0.1)
    run: Any = training.graphed(training.FastAT(LINF), optimizer)
    with pytest.raises(TypeError, match="give the step that it records, its .step"):
        training.Sentinel(LINF, X, Y, every=1).watch(run, NET, optimizer)


@pytest.mark.parametrize("names", ["apgd-ce", None, PGD])
def test_the_authors_take_names_in_a_list(names: Any):
    with pytest.raises(TypeError, match="attacks_to_run must be a list of names, .*; got "):
        autoattack.AutoAttack(NET, version="custom", attacks_to_run=names, device="cpu")
