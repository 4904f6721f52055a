"""Contract C5 for AutoAttack's members: passes a step, and nothing that waits for the host."""

import pytest
import torch
from members import (
    ATTACKS,
    GRADIENT_MEMBERS,
    MEMBERS,
    member,
    of_one_target,
    of_steps,
    one_of_each_kind,
)
from op_counts import DATA_DEPENDENT, all_ops, linear, outer_ops, per_step
from toy_models import NORMS, Counting, SpyLinear, mixed_problem

import fastadv

N = 30
_PLAIN = fastadv.Execution(batching="plain")


def _caller(name, norm, model=None, **more):
    """steps -> the call of an attack with as many, at a radius too small to fool the model."""
    model = model or linear()
    x = mixed_problem(N, (3, 4, 4)).x
    if name == "square" and norm != "linf":
        x = mixed_problem(N, (1, 6, 8)).x
    with torch.no_grad():
        y = model(x).argmax(1)

    def call_of(steps):
        budget = of_steps(name, steps) | of_one_target(name)
        attack = member(name, norm, scale=1e-4, **(budget | more))
        return lambda: attack.run(model, x, y, execution=_PLAIN)

    return call_of


def _steps(name, norm):
    return dict(large_radii=False) if (name, norm) == ("apgd_t", "l1") else {}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", one_of_each_kind())
def test_no_step_waits_for_the_host(name, norm):
    step = per_step(all_ops, _caller(name, norm, **_steps(name, norm)))
    assert any(op.startswith("fastadv::") and count >= 1 for op, count in step.items())
    assert DATA_DEPENDENT & step.keys() == set()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", MEMBERS)
def test_our_ops_in_a_step(name, norm):
    step = per_step(outer_ops, _caller(name, norm, **_steps(name, norm)))
    ours = {op: count for op, count in step.items() if op.startswith("fastadv::")}
    assert sum(ours.values()) == ATTACKS[name].ops, ours


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", MEMBERS)
def test_the_passes_of_a_step(name, norm):
    model = Counting(linear())
    call_of = _caller(name, norm, model, **_steps(name, norm))
    seen = []
    for steps in (3, 5):
        model.calls = model.backwards = 0
        call_of(steps)()
        seen.append((model.calls, model.backwards // N))
    forwards, backwards = ((b - a) / 2 for a, b in zip(*seen, strict=True))
    assert (forwards, backwards) == ATTACKS[name].passes
    assert member(name, norm).takes_gradients == (backwards > 0)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", GRADIENT_MEMBERS)
def test_no_weight_gradient_is_ever_computed(name, norm):
    layer = SpyLinear(48, 5)
    layer.clear()
    _caller(name, norm, torch.nn.Sequential(torch.nn.Flatten(), layer))(4)()
    assert set(layer.asked) == {(True, False, False)}
