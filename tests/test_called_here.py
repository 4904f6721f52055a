"""Names that fingers bring from other libraries are answered by what is called so here."""

import copy
import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

import fastadv
from fastadv import called_here
from fastadv.attacks.attack import constructors

THREAT = fastadv.Linf(8 / 255)
SETTINGS: list[tuple[Callable[[], Any], str]] = [
    (
        lambda: fastadv.pgd(eps=8 / 255),  # type: ignore[call-arg]
        "pgd has no 'eps': here it is a part of the threat model, as in "
        "fastadv.pgd(fastadv.Linf(8 / 255))",
    ),
    (
        lambda: fastadv.pgd(THREAT, alpha=2 / 255),  # type: ignore[call-arg]
        "pgd has no 'alpha': here it is step_size",
    ),
    (
        lambda: fastadv.bim(THREAT, iters=40),  # type: ignore[call-arg]
        "bim has no 'iters': here it is steps",
    ),
    (
        lambda: fastadv.apgd_ce(THREAT, nb_iter=40),  # type: ignore[call-arg]
        "apgd_ce has no 'nb_iter': here it is steps",
    ),
    (
        lambda: fastadv.square(THREAT, iters=40),  # type: ignore[call-arg]
        "square has no 'iters': here it is queries",
    ),
    (
        lambda: fastadv.fab(THREAT, model=None),  # type: ignore[call-arg]
        "fab has no 'model': here it is given at the call, attack(model, x, y)",
    ),
    (
        lambda: fastadv.square(THREAT, rand_init=True),  # type: ignore[call-arg]
        "square has no 'rand_init': its settings are threat, queries, restarts",
    ),
    (
        lambda: fastadv.pgd(THREAT, sharpness=2),  # type: ignore[call-arg]
        "pgd has no 'sharpness': its settings are threat, steps, step_size",
    ),
    (
        lambda: fastadv.pgd(THREAT, 40),  # type: ignore[call-arg]
        "pgd takes threat by position, and its settings by name, as in "
        "fastadv.pgd(threat, steps=...); got 2 values by position",
    ),
    (
        lambda: fastadv.autoattack(THREAT, eps=0.1),  # type: ignore[call-arg]
        "autoattack has no 'eps': here it is a part of the threat model",
    ),
    (
        lambda: fastadv.autoattack(THREAT, "custom", attacks_to_run=["fab"]),  # type: ignore[call-arg]
        "autoattack has no 'attacks_to_run': here it is attacks",
    ),
]


@pytest.mark.parametrize(("make", "words"), SETTINGS)
def test_settings_are_answered(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(TypeError, match=re.escape(words)):
        make()


def test_no_answer_names_what_a_constructor_has_not() -> None:
    makers = [*constructors().values(), fastadv.autoattack]
    for make in makers:
        for setting in called_here._SETTINGS:
            try:
                make(THREAT, **{setting: 1})
            except TypeError as error:
                named = re.search(r"here it is ([a-z_]+)$", str(error))
                if named:
                    with pytest.raises((TypeError, ValueError)) as found:
                        make(THREAT, **{named[1]: object()})
                    assert "has no" not in str(found.value)
            except ValueError:
                pass  # it has that setting


@pytest.mark.parametrize("name", called_here._ATTACKS)
def test_attacks_of_other_libraries_are_answered(name: str) -> None:
    with pytest.raises(AttributeError) as found:
        getattr(fastadv, name)
    words = re.findall(r"fastadv\.[\w.]+", str(found.value))
    assert words, found.value
    for word in words:
        home, _, last = word.rpartition(".")
        package = __import__(home, fromlist=[last])
        assert hasattr(package, last), word


def test_free_has_no_loss_method() -> None:
    step = fastadv.training.FreeAT(THREAT)
    with pytest.raises(TypeError, match="FreeAT has no loss.*for loss in step"):
        step.loss(torch.nn.Linear(2, 2), torch.zeros(1, 2), torch.zeros(1))  # type: ignore
    assert step.loss == "ce"
    assert repr(step) == repr(copy.deepcopy(step)) == repr(pickle.loads(pickle.dumps(step)))


def test_decay_of_the_average_by_position() -> None:
    net = torch.nn.Linear(1, 1, bias=False)
    averages = [fastadv.training.ema(net, 0.05), fastadv.training.ema(net, decay=0.05)]
    for average in averages:
        average.update_parameters(net)
        with torch.no_grad():
            net.weight += 1.0
            average.update_parameters(net)
            net.weight -= 1.0
    moved = [(average.module.weight - net.weight).item() for average in averages]
    assert moved[0] == moved[1] == pytest.approx(0.95)
