"""APGD's schedule and check against the authors' counters, and whole attacks by the textbook."""

import pytest
import torch
from apgd_problems import (
    MidAttack,
    move_l2,
    move_linf,
    slot_state,
    textbook_attack,
    wavy,
)

from fastadv.kernels import slots
from fastadv.kernels.apgd import progress as apgd_progress
from fastadv.ops.apgd.check import apgd_check_
from fastadv.ops.apgd.l2 import apgd_l2_step_
from fastadv.ops.apgd.linf import apgd_linf_step_
from fastadv.ops.apgd.schedule import apgd_checkpoints


def _counted(steps):
    """{t: period} by counting evaluations as the authors do; t = 0 is the start."""
    period, decrement, least = (max(int(f * steps), 1) for f in (0.22, 0.03, 0.06))
    found, since = {}, 0
    for i in range(steps):
        since += 1
        if since == period:
            found[i + 1] = period
            since, period = 0, max(period - decrement, least)
    return found


@pytest.mark.parametrize("steps", [1, 2, 5, 10, 20, 33, 40, 50, 100, 101, 200, 1000])
def test_checkpoints_are_where_the_authors_counters_put_them(steps):
    table = apgd_checkpoints(steps)
    assert len(table) == steps + 1
    assert {t: k for t, k in enumerate(table) if k} == _counted(steps)


def test_checkpoints_of_a_hundred_steps():
    # the iterations 21, 40, 56, 69, 79, 86, 92, 98 of the paper, counted from the start iterate
    assert [t for t, k in enumerate(apgd_checkpoints(100)) if k] == [22, 41, 57, 70, 80, 87, 93, 99]


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match="steps must be at least 1; got 0"):
        apgd_checkpoints(0)


def run(step, evaluate, x, start, eps, steps):
    """The same attack by the ops; one slot starts three evaluations late, one never does."""
    batch, device = len(x), x.device
    nan = float("nan")
    x_adv, grad_best = start.clone(), torch.full_like(x, nan)
    x_previous, x_best = torch.full_like(x, nan), torch.full_like(x, nan)
    idle = x_adv[-1].clone()
    progress = torch.full((batch, apgd_progress.WIDTH), nan, dtype=x.dtype, device=device)
    step_size, best_loss = 2 * eps, torch.full_like(eps, -float("inf"))
    checkpoints = torch.tensor(apgd_checkpoints(steps), dtype=torch.int32, device=device)
    late = torch.zeros(batch, dtype=torch.int64)
    late[1] = 3
    iterates = [[] for _ in range(batch)]
    for turn in range(steps + 4):
        t = turn - late
        here = (t >= 0) & (t <= steps)
        here[-1] = False
        for b in torch.arange(batch)[here].tolist():
            iterates[b].append(x_adv[b].clone())
        loss, grad = evaluate(x_adv)
        improved = here.to(device) & (loss > best_loss)
        best_loss = torch.where(improved, loss, best_loss)
        x_best[improved & (t == steps).to(device)] = x_adv[improved & (t == steps).to(device)]
        state = slot_state(device, t.clamp(min=0).tolist(), here & (t < steps), improved.cpu())
        apgd_check_(progress, step_size, loss, best_loss, state, checkpoints)
        step(
            x_adv,
            x_previous,
            x_best,
            grad_best,
            grad,
            x,
            step_size=step_size,
            eps=eps,
            bounds=(0.0, 1.0),
            slots=state,
            progress=progress,
        )
    assert torch.equal(x_adv[-1], idle) and progress[-1].isnan().all()
    return iterates, x_best, best_loss, step_size


def _problem(device, dtype):
    generator = torch.Generator().manual_seed(3)
    x = torch.rand((4, 37), generator=generator, dtype=torch.float64)
    start = (x + 0.1 * (torch.rand(x.shape, generator=generator, dtype=x.dtype) - 0.5)).clamp(0, 1)
    weight = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    return tuple(t.to(device, dtype) for t in (x, start, weight))


@pytest.mark.parametrize("steps", [10, 40])
def test_a_whole_linf_attack_is_the_textbooks_bit_for_bit(steps, implementation, device):
    x, start, weight = _problem(device, torch.float32)
    eps = torch.tensor([0.05, 0.2, 0.1, 0.1], device=device)
    got = run(apgd_linf_step_, wavy(weight), x, start, eps, steps)
    iterates, best, best_loss, step_size = textbook_attack(
        wavy(weight), move_linf, x, start, eps, steps
    )
    assert (step_size[:3] < 2 * eps[:3]).all()  # some checks did halve
    for b in range(3):
        assert len(got[0][b]) == steps + 1
        assert all(torch.equal(got[0][b][t], iterates[t][b]) for t in range(steps + 1))
    assert torch.equal(got[1][:3], best[:3])
    assert torch.equal(got[2][:3], best_loss[:3])


def test_a_whole_l2_attack_is_the_textbooks(implementation, device):
    x, start, weight = _problem(device, torch.float64)
    eps = torch.tensor([0.3, 0.9, 0.6, 0.6], dtype=torch.float64, device=device)
    got = run(apgd_l2_step_, wavy(weight), x, start, eps, 40)
    iterates, best, best_loss, step_size = textbook_attack(wavy(weight), move_l2, x, start, eps, 40)
    assert (step_size[:3] < 2 * eps[:3]).any()
    for b in range(3):
        # 40 steps in float64: rounding of 1e-16 grows, a wrong formula gives 1e-3 and more
        difference = torch.stack(got[0][b]) - torch.stack([z[b] for z in iterates])
        assert difference.abs().max() < 1e-9
    torch.testing.assert_close(got[1][:3], best[:3], rtol=0, atol=1e-9)


@pytest.mark.parametrize("rho", [0.5, 0.75])
def test_a_check_counts_the_losses_that_rose(rho, implementation, device):
    """Random losses, 200 slots: more than one program, and every outcome of the check."""
    generator = torch.Generator().manual_seed(1)
    batch, steps = 200, 40
    losses = torch.randn((steps + 1, batch), generator=generator)
    losses[:, ::2] += torch.linspace(0, 4, steps + 1)[:, None]  # some that mostly rise
    checkpoints = torch.tensor(apgd_checkpoints(steps), dtype=torch.int32, device=device)
    progress = torch.full((batch, apgd_progress.WIDTH), float("nan"), device=device)
    step_size = torch.ones(batch, device=device)
    best = torch.full((batch,), -float("inf"))
    history = torch.zeros(steps, batch)  # the authors': the start's loss is not in it
    expected, reduced, checked = torch.ones(batch), torch.ones(batch, dtype=torch.bool), losses[0]
    outcomes = set()
    for t in range(steps + 1):
        best = torch.maximum(best, losses[t])
        state = slot_state(device, [t] * batch, [1] * batch, [0] * batch)
        apgd_check_(
            progress, step_size, losses[t].to(device), best.to(device), state, checkpoints, rho=rho
        )
        flag = torch.zeros(batch, dtype=torch.bool)
        if t:
            history[t - 1] = losses[t]
            if k := apgd_checkpoints(steps)[t]:
                rises = sum((history[t - 1 - c] > history[t - 2 - c]).float() for c in range(k))
                stuck = ~reduced & (checked >= best)
                flag = (rises <= rho * k) | stuck
                outcomes |= set(zip((rises <= rho * k).tolist(), stuck.tolist(), strict=True))
                reduced, checked = flag, best.clone()
                expected = torch.where(flag, expected / 2, expected)
        assert torch.equal(progress[:, apgd_progress.RESTORE].cpu(), flag.float()), t
        assert torch.equal(step_size.cpu(), expected), t
    assert len(outcomes) >= 3


def test_finished_rows_keep_their_progress(implementation, device):
    state = slot_state(device, [0, 2, 999], [1, 0, 0], [0, 0, 0])
    progress = torch.randn(3, apgd_progress.WIDTH, device=device)
    progress[1, 0] = float("nan")
    before, step_size = progress.clone(), torch.ones(3, device=device)
    loss = torch.randn(3, device=device)
    checkpoints = torch.tensor([0, 1, 1, 1], dtype=torch.int32, device=device)
    apgd_check_(progress, step_size, loss, loss, state, checkpoints)
    assert progress[0].tolist() == [0.0, 0.0, float(loss[0]), 1.0, 0.0]
    torch.testing.assert_close(progress[1:], before[1:], rtol=0, atol=0, equal_nan=True)
    assert step_size.tolist() == [1.0, 1.0, 1.0]


def test_no_slots_are_no_work(implementation, device):
    empty = torch.empty(0, device=device)
    apgd_check_(
        torch.empty(0, 5, device=device),
        empty,
        empty,
        empty,
        torch.empty(0, slots.WIDTH, dtype=torch.int32, device=device),
        torch.zeros(2, dtype=torch.int32, device=device),
    )


def test_a_check_is_one_launch(count_launches, device):
    from fastadv.ops import use_backend

    case = MidAttack(device, 3)
    loss = torch.zeros(6, device=device)
    checkpoints = torch.zeros(11, dtype=torch.int32, device=device)
    with use_backend("triton"), count_launches() as launches:
        apgd_check_(case.progress, case.step_size, loss, loss, case.slots, checkpoints)
    assert launches == ["apgd_check_kernel"]


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("progress", torch.zeros(6, 4), r"progress must be \(6, 5\) torch.float32"),
        ("slots", torch.zeros(6, 5), r"slots must be \(6, 5\) torch.int32"),
        ("loss", torch.zeros(6).double(), "loss must be|progress must be"),
        ("step_size", torch.zeros(5), r"step_size must be \(6,\) torch.float32"),
        ("checkpoints", torch.zeros(3), r"checkpoints must be \(steps \+ 1,\) int32"),
    ],
)
def test_bad_arguments_are_named(name, wrong, message):
    case, loss = MidAttack("cpu", 3), torch.zeros(6)
    arguments = dict(
        progress=case.progress,
        step_size=case.step_size,
        loss=loss,
        best_loss=loss,
        slots=case.slots,
        checkpoints=torch.zeros(3, dtype=torch.int32),
    )
    with pytest.raises(ValueError, match=message):
        apgd_check_(**(arguments | {name: wrong}))


def test_opcheck(implementation, device):
    case = MidAttack(device, 3)
    checkpoints = torch.ones(11, dtype=torch.int32, device=device)
    arguments = (
        case.progress,
        case.step_size,
        case.eps.clone(),
        case.eps,
        case.slots,
        checkpoints,
        0.75,
    )
    torch.library.opcheck(torch.ops.fastadv.apgd_check_.default, arguments)
