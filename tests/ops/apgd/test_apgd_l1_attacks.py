"""L1-APGD's plan, and whole attacks in float64 against the authors' loop."""

import math

import pytest
import torch
from apgd_problems import l1_problem, slot_state, wavy

from fastadv.ops.apgd.l1 import apgd_l1_step_
from fastadv.ops.apgd.schedule import (
    CHECK,
    GIVEN_START,
    MOVE,
    NEXT_PHASE,
    RANDOM_START,
    apgd_l1_plan,
)


@pytest.mark.parametrize("steps", [3, 4, 5, 10, 33, 100, 250])
def test_a_plan_of_large_radii_has_the_authors_phases(steps):
    third = math.ceil(0.3 * steps)
    phases = [third, third, steps - 2 * third]
    plan, radius = apgd_l1_plan(steps, large_radii=True)
    assert len(plan) == len(radius) == steps + 3
    starts = [t for t, entry in enumerate(plan) if entry == GIVEN_START]
    assert starts == [0, third + 1, 2 * third + 2]
    assert [t for t, e in enumerate(plan) if e == NEXT_PHASE] == [third, 2 * third + 1]
    for start, moves, multiple in zip(starts, phases, (3.0, 2.0, 1.0), strict=True):
        # the authors' counter: the check comes after k moves, then k more
        period = max(int(0.04 * moves), 1)
        checked = [t for t in range(1, moves) if plan[start + t] == CHECK]
        assert checked == list(range(period, moves, period))
        assert set(radius[start : start + moves]) <= {multiple}
    # the projection at the end of a phase is onto the next ball
    assert [radius[third], radius[2 * third + 1], radius[-1]] == [2.0, 1.0, 1.0]


@pytest.mark.parametrize("given", [False, True])
def test_a_plan_of_one_phase(given):
    plan, radius = apgd_l1_plan(60, large_radii=False, given_start=given)
    expected = [CHECK if t % 2 == 0 else MOVE for t in range(61)]
    expected[0], expected[-1] = (GIVEN_START if given else RANDOM_START), MOVE
    assert list(plan) == expected and radius == (1.0,) * 61


@pytest.mark.parametrize(("steps", "large_radii", "least"), [(0, False, 1), (2, True, 3)])
def test_too_few_steps_are_refused(steps, large_radii, least):
    with pytest.raises(ValueError, match=f"steps must be at least {least}; got {steps}"):
        apgd_l1_plan(steps, large_radii=large_radii)


def _project(z, x, eps):
    """The textbook: bisection on the threshold, one sample."""
    u = z - x
    room = torch.where(u >= 0, 1 - x, x)
    kept = torch.minimum(u.abs(), room)
    if kept.sum() > eps:
        low, high = 0.0, float(u.abs().max())
        for _ in range(200):
            middle = (low + high) / 2
            kept = torch.minimum((u.abs() - middle).clamp(min=0), room)
            low, high = (middle, high) if kept.sum() > eps else (low, middle)
    return x + torch.sign(u) * kept


def _textbook_phase(evaluate, x, start, eps, moves, given):
    """The authors' L1 loop for one phase: (iterates, best iterates, how often a row restarted)."""
    batch, size = x.shape
    z = start.clone()
    loss, grad = evaluate(z)
    best, best_grad, best_loss = z.clone(), grad.clone(), loss.clone()
    support = (z != x).sum(1).to(x.dtype) if given else torch.full_like(eps, size)
    sparsity = support / size / 1.5 if given else torch.full_like(eps, 0.2)
    step_size, restarts, iterates = eps.clone(), 0, [z.clone()]
    period = max(int(0.04 * moves), 1)
    for i in range(moves):
        for b in range(batch):
            index = int(((1 - sparsity[b]) * size).clamp(0, size - 1))
            kept = grad[b] * (grad[b].abs() >= grad[b].abs().sort().values[index])
            move = step_size[b] * kept.sign() / (kept.sign().abs().sum() + 1e-10)
            z[b] = _project(z[b] + move, x[b], eps[b])
        iterates.append(z.clone())
        loss, grad = evaluate(z)
        better = loss > best_loss
        best[better], best_grad[better], best_loss[better] = z[better], grad[better], loss[better]
        if (i + 1) % period == 0 and i + 1 < moves:
            count = (best != x).sum(1).to(x.dtype)
            shrunk = count / support < 0.95
            sparsity, support = count / size / 1.5, count
            step_size = torch.where(shrunk, eps, step_size / 1.5)
            step_size = torch.minimum(torch.maximum(step_size, eps / 10), eps)
            z[shrunk], grad[shrunk] = best[shrunk], best_grad[shrunk]
            restarts += int(shrunk.sum())
    return iterates, best, restarts


def _run(evaluate, x, start, eps, plan, radius):
    """Every iterate by the op; the last slot is idle."""
    batch, device, nan = len(x), x.device, float("nan")
    x_adv = start.clone()
    x_best, grad_best = torch.full_like(x, nan), torch.full_like(x, nan)
    state = {
        k: torch.full_like(eps, 7.0) for k in ("step_size", "sparsity", "phase_eps", "support")
    }
    best_loss = torch.full_like(eps, -float("inf"))
    tables = dict(
        plan=torch.tensor(plan, dtype=torch.int32, device=device),
        radius=torch.tensor(radius, dtype=x.dtype, device=device),
    )
    active = torch.ones(batch, dtype=torch.bool)
    active[-1] = False
    iterates = []
    for t in range(len(plan)):
        iterates.append(x_adv.clone())
        loss, grad = evaluate(x_adv)
        improved = active.to(device) & (loss > best_loss)
        best_loss = torch.where(improved, loss, best_loss)
        on = active & (t + 1 < len(plan))
        slots = slot_state(device, [t] * batch, on, improved.cpu())
        apgd_l1_step_(
            x_adv,
            x_best,
            grad_best,
            grad,
            x,
            eps=eps,
            bounds=(0.0, 1.0),
            best_loss=best_loss,
            slots=slots,
            **tables,
            **state,
        )
    assert torch.equal(x_adv[-1], start[-1]) and x_best[-1].isnan().all()
    assert all(value[-1] == 7.0 for value in state.values())
    return iterates


def _assert_equal_trajectories(got, expected):
    assert len(got) == len(expected)
    for t, (a, b) in enumerate(zip(got, expected, strict=True)):
        # float64: rounding grows from 1e-16, while a wrong flag or formula gives 1e-3 and more
        assert (a[:-1] - b[:-1]).abs().max() < 1e-9, t


@pytest.mark.parametrize("given", [False, True])
def test_a_whole_attack_is_the_textbooks(given, either_backend, device):
    x, start, weight, eps = l1_problem(device, torch.float64)
    start = _rows_projected(start, x, eps)
    plan, radius = apgd_l1_plan(40, large_radii=False, given_start=given)
    expected, _, restarts = _textbook_phase(wavy(weight), x, start, eps, 40, given)
    assert restarts > 0
    _assert_equal_trajectories(_run(wavy(weight), x, start, eps, plan, radius), expected)


def _rows_projected(z, x, eps):
    return torch.stack([_project(z[b], x[b], eps[b]) for b in range(len(x))])


def test_an_attack_of_large_radii_is_the_textbooks(either_backend, device):
    x, start, weight, eps = l1_problem(device, torch.float64)
    expected, point = [], start
    for multiple, moves in ((3, 9), (2, 9), (1, 12)):
        point = _rows_projected(point, x, multiple * eps)
        iterates, point, _ = _textbook_phase(wavy(weight), x, point, multiple * eps, moves, True)
        expected += iterates
    plan, radius = apgd_l1_plan(30, large_radii=True)
    start = _rows_projected(start, x, 3 * eps)
    _assert_equal_trajectories(_run(wavy(weight), x, start, eps, plan, radius), expected)
