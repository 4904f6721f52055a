"""Samples whose gradient says little of the loss within eps meet FAB-T in version="fast"."""

import dataclasses
import warnings

import pytest
import torch
from members import member_problem
from toy_models import NORMS, threat_of

import fastadv
from fastadv.ensemble.linearity import is_empty, is_rough, rough
from fastadv.ensemble.versions import reserved_of

_EPS = 0.1


def _told(function):
    """Of two classes, whose margin at x is function(x) - 1: whether each sample is rough."""

    def model(x):
        wrong = function(x.flatten(1)[:, 0])
        return torch.stack([3 * torch.ones_like(wrong), 2 + wrong], 1)

    x = torch.full((3, 1, 1, 1), 0.5)
    with torch.no_grad():
        logits = model(x)
    found, empty, call = rough(
        fastadv.Linf(_EPS),
        model,
        x,
        torch.zeros(3, dtype=torch.int64),
        logits,
        sample_ids=torch.arange(3),
        extra=[],
        mask=None,
        execution=fastadv.Execution(batch_size=2),
    )
    assert (call.oracle.forwards, call.oracle.backwards) == (9, 3)
    return list(zip(found.tolist(), empty.tolist(), strict=True))


def _saturated(a):
    return torch.tanh(100 * (a - 0.48)) / 2


@pytest.mark.parametrize(
    "function, expected",
    [
        (lambda a: a, (False, False)),
        (lambda a: a - a**2 / 2, (False, False)),  # a slope that loses a tenth on the way
        (_saturated, (True, True)),  # saturates on the way
        (lambda a: -((a - 0.501) ** 2), (True, True)),  # ends lower than it began
        (lambda a: 0.01 * a + torch.relu(a - 0.55), (True, False)),  # the slope comes later
        (lambda a: 0 * a, (True, True)),  # says nothing
    ],
)
def test_a_gradient_is_held_against_what_the_step_gains(function, expected):
    assert _told(function) == [expected] * 3


def test_bounds_of_what_is_rough():
    short = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0, -1.0]) / 32
    whole = torch.tensor([0.24, 0.26, 1.9, 2.1, 1.0, 1.0])
    assert is_rough(short, whole).tolist() == [True, False, False, True, True, True]
    assert is_empty(short, whole).tolist() == [True, False, False, False, True, True]


def _ensemble(norm="linf", scale=1.0):
    """Only FAB-T is given anything to do in reserve."""
    ensemble = fastadv.autoattack(threat_of(norm, scale), "fast")
    budgets = {
        "apgd_ce": dict(steps=4),
        "apgd_t": dict(steps=4, n_target_classes=1),
        "fab_t": dict(steps=2),
        "square": dict(queries=4),
    }
    attacks = [dataclasses.replace(a, **budgets[a.constructor]) for a in ensemble.attacks]
    return dataclasses.replace(ensemble, attacks=tuple(attacks))


def _saturating(p):
    return lambda x: 5 * torch.tanh(4 * p.model(x))


@pytest.mark.parametrize("norm", NORMS)
def test_fab_attacks_those_whose_gradients_say_little(norm):
    """Behind a tanh of the logits, which saturates; the count of passes has the look's."""
    p, ensemble = member_problem(30), _ensemble(norm)
    place = [d.rough for d in reserved_of("fast")].index(True) - len(reserved_of("fast"))
    counts = []
    for model in (p.model, _saturating(p)):
        seen = [0]

        def counted(x, net=model, seen=seen):
            seen[0] += len(x)
            return net(x)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", fastadv.AttackWarning)
            result = ensemble.run(counted, p.x, p.y)
            checks = 5 * len(p.x)
        assert seen[0] == result.forwards + checks
        counts.append(result.stages[place].attacked)
    assert counts[0] < counts[1]


def test_the_look_itself_warns_of_nothing_twice():
    p, ensemble = member_problem(12, wrong_every=20), _ensemble(scale=0.2)

    def flat(x):
        return p.model(x).detach() + 0.0 * x.flatten(1).sum(1, keepdim=True)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = ensemble.run(flat, p.x, p.y)
        report = fastadv.evaluate(flat, (p.x, p.y), ensemble, batch_size=5, progress=False)
    said = [w.message for w in caught if isinstance(w.message, fastadv.AttackWarning)]
    counts = {warning.code: warning.count for warning in said[: len(said) // 2]}
    left = int((~result.success).sum())
    assert counts["empty_gradient"] == report.warnings["empty_gradient"] == left
    codes = [warning.code for warning in said]
    assert codes.count("zero_gradient") == 2  # once of the run, once of the evaluation
    assert result.stages[-2].attacked == left  # all are rough
