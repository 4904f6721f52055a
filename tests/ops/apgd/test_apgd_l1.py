"""L1-APGD: its plan, its bookkeeping against the textbook, and whole attacks in float64."""

import math

import pytest
import torch
from apgd_problems import slot_state

from fastadv.ops import project_l1_reference, use_backend
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


def _problem(device, dtype, batch=4, shape=(61,)):
    generator = torch.Generator().manual_seed(3)
    x = torch.rand((batch, *shape), generator=generator, dtype=torch.float64)
    noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    weight = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    eps = torch.linspace(0.5, 2.0, batch, dtype=torch.float64)
    start = project_l1_reference((x + 0.1 * noise).clamp(0, 1), x, eps=3 * eps)
    return tuple(t.to(device, dtype) for t in (x, start, weight, eps))


def _wavy(weight):
    def evaluate(x_adv):
        loss = (weight * torch.sin(9.0 * x_adv)).flatten(1).sum(1)
        return loss, 9.0 * weight * torch.cos(9.0 * x_adv)

    return evaluate


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
    x, start, weight, eps = _problem(device, torch.float64)
    start = _rows_projected(start, x, eps)
    plan, radius = apgd_l1_plan(40, large_radii=False, given_start=given)
    expected, _, restarts = _textbook_phase(_wavy(weight), x, start, eps, 40, given)
    assert restarts > 0
    _assert_equal_trajectories(_run(_wavy(weight), x, start, eps, plan, radius), expected)


def _rows_projected(z, x, eps):
    return torch.stack([_project(z[b], x[b], eps[b]) for b in range(len(x))])


def test_an_attack_of_large_radii_is_the_textbooks(either_backend, device):
    x, start, weight, eps = _problem(device, torch.float64)
    expected, point = [], start
    for multiple, moves in ((3, 9), (2, 9), (1, 12)):
        point = _rows_projected(point, x, multiple * eps)
        iterates, point, _ = _textbook_phase(_wavy(weight), x, point, multiple * eps, moves, True)
        expected += iterates
    plan, radius = apgd_l1_plan(30, large_radii=True)
    start = _rows_projected(start, x, 3 * eps)
    _assert_equal_trajectories(_run(_wavy(weight), x, start, eps, plan, radius), expected)


def _arguments(device, shape=(2500,), dtype=torch.float32):
    """Five slots in the five entries of a plan, a sixth that is finished; every second improved."""
    x, x_adv, weight, eps = _problem(device, dtype, 6, shape)
    x_best = (x + 0.4 * (x_adv - x)).to(dtype)
    x_best.view(6, -1)[:, 1::2] = x.view(6, -1)[:, 1::2]
    grad = weight.clone()
    grad.view(6, -1)[:, 3] = float("nan")
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    images = [x_adv, x_best, torch.randn_like(weight), grad, x]
    rows = {
        name: torch.full((6,), value, dtype=compute, device=device)
        for name, value in dict(step_size=0.3, sparsity=0.1, phase_eps=1.0, support=2500.0).items()
    }
    keywords = rows | dict(
        eps=eps.to(compute),
        bounds=(0.0, 1.0),
        best_loss=torch.ones(6, dtype=compute, device=device),
        slots=slot_state(device, [4, 0, 1, 2, 3, 1], [1, 1, 1, 1, 1, 0], [1, 0, 0, 0, 1, 1]),
        plan=torch.tensor([0, 1, 2, 3, 4], dtype=torch.int32, device=device),
        radius=torch.tensor([3.0, 2.0, 2.0, 1.0, 1.0], dtype=compute, device=device),
        correct=torch.tensor([True, False] * 3, device=device),
        x_hit=torch.full_like(x, float("nan")),
    )
    return images, keywords


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_the_bookkeeping_is_the_same_from_both_backends(dtype, device):
    pytest.importorskip("triton", reason="needs triton, which is installed on Linux only")
    results = []
    for name in ("reference", "triton"):
        images, keywords = _arguments(device, dtype=dtype)
        torch.manual_seed(0)
        images[2] = torch.randn_like(images[2])
        with use_backend(name):
            apgd_l1_step_(*images, **keywords)
        results.append((images, keywords))
    (images, keywords), (theirs, their_keywords) = results
    ulp = torch.finfo(dtype).eps
    torch.testing.assert_close(images[0], theirs[0], rtol=0, atol=4 * ulp)
    for a, b in zip(images[1:], theirs[1:], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    for name in ("step_size", "sparsity", "phase_eps", "support", "best_loss", "x_hit"):
        a, b = keywords[name], their_keywords[name]
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def test_every_entry_of_a_plan(either_backend, device):
    images, k = _arguments(device)
    before = [t.clone() for t in images]
    x_adv, x_best, grad_best, _, x = before
    eps, support = k["eps"].clone(), (x_best != x).sum(1).float()
    assert (support[2] / 2500 < 0.95) and k["radius"][1] == 2.0
    apgd_l1_step_(*images, **k)
    # slots:       random start   move   check        next phase   given start
    radius_of = torch.tensor([1.0, 3.0, 2.0, 2.0, 1.0], device=device) * eps[:5]
    assert torch.equal(k["phase_eps"][:5], radius_of)
    assert k["step_size"].tolist() == [
        float(radius_of[0]),
        0.30000001192092896,
        float(radius_of[2]),
        0.0,
        float(radius_of[4]),
        0.30000001192092896,
    ]
    evaluated = (x_adv != x).sum(1).float()
    assert k["support"].tolist() == [2500.0, 2500.0, support[2], 2500.0, evaluated[4], 2500.0]
    shares = torch.stack([support[2], evaluated[4]]) / 2500 / 1.5
    assert torch.equal(k["sparsity"][[2, 4]], shares)
    assert torch.equal(k["sparsity"][[0, 1, 3, 5]], torch.tensor([0.2, 0.1, 0.1, 0.1]).to(device))
    assert k["best_loss"].tolist() == [1.0, 1.0, 1.0, -float("inf"), 1.0, 1.0]
    improved = torch.tensor([True, False, False, False, True, False], device=device)
    torch.testing.assert_close(images[1][improved], x_adv[improved], rtol=0, atol=0)
    torch.testing.assert_close(images[1][~improved], x_best[~improved], rtol=0, atol=0)
    torch.testing.assert_close(images[2][~improved], grad_best[~improved], rtol=0, atol=0)
    torch.testing.assert_close(k["x_hit"][[1, 3]], x_adv[[1, 3]], rtol=0, atol=0)
    assert k["x_hit"][[0, 2, 4, 5]].isnan().all()
    # the next phase starts from the projection of the best iterate
    expected = project_l1_reference(x_best[3:4], x[3:4], eps=radius_of[3:4])
    torch.testing.assert_close(images[0][3:4], expected, rtol=0, atol=2**-22)
    torch.testing.assert_close(images[0][5], x_adv[5], rtol=0, atol=0)
    # the check's row moved from the best iterate, not from the last one
    u = images[0][2] - x[2]
    assert u.abs().sum() <= radius_of[2] * (1 + 1e-5)
    assert torch.equal(images[3][2], grad_best[2])


def test_channels_last_and_a_gradient_in_the_other_layout(either_backend, device):
    images, k = _arguments(device, (3, 4, 5))
    last = [t.contiguous(memory_format=torch.channels_last) for t in images[:3]]
    clean = images[4].contiguous(memory_format=torch.channels_last)
    hit = k["x_hit"].contiguous(memory_format=torch.channels_last)
    copies = {n: v.clone() if isinstance(v, torch.Tensor) else v for n, v in k.items()}
    apgd_l1_step_(*last, images[3].clone(), clean, **(copies | dict(x_hit=hit)))
    apgd_l1_step_(*images, **k)
    torch.testing.assert_close(last[0], images[0], rtol=0, atol=2**-22)
    torch.testing.assert_close(last[1], images[1], rtol=0, atol=0)
    torch.testing.assert_close(hit, k["x_hit"], rtol=0, atol=0, equal_nan=True)


def test_two_launches(count_launches, device):
    images, keywords = _arguments(device, (41,))
    with use_backend("triton"), count_launches() as launches:
        apgd_l1_step_(*images, **keywords)
    assert launches == ["apgd_l1_check_kernel", "l1_kernel"]


def test_opcheck(either_backend, device):
    images, k = _arguments(device, (41,))
    arguments = (
        *images,
        k["step_size"],
        k["sparsity"],
        k["phase_eps"],
        k["support"],
        k["eps"],
        k["best_loss"],
        k["slots"],
        k["plan"],
        k["radius"],
        k["correct"],
        k["x_hit"],
    )
    torch.library.opcheck(torch.ops.fastadv.apgd_l1_check_.default, arguments)


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("plan", torch.zeros(5), r"plan must be \(steps \+ 1,\) int32"),
        (
            "radius",
            torch.zeros(4),
            r"radius must be a floating-point tensor of plan's shape \(5,\)",
        ),
        ("support", torch.zeros(6).double(), r"support must be \(6,\) torch.float32"),
        ("correct", None, "correct and x_hit belong together"),
    ],
)
def test_bad_arguments_are_named(name, wrong, message):
    images, keywords = _arguments("cpu", (41,))
    with pytest.raises(ValueError, match=message):
        apgd_l1_step_(*images, **(keywords | {name: wrong}))


@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0)])
def test_empty_inputs(shape, either_backend, device):
    x, rows = torch.zeros(shape, device=device), torch.zeros(shape[0], device=device)
    names = ("step_size", "sparsity", "phase_eps", "support", "eps", "best_loss")
    apgd_l1_step_(
        *[x.clone() for _ in range(5)],
        **{n: rows.clone() for n in names},
        bounds=None,
        slots=torch.ones(shape[0], 5, dtype=torch.int32, device=device),
        plan=torch.zeros(2, dtype=torch.int32, device=device),
        radius=torch.ones(2, device=device),
    )
