"""The L2 step against its closed form in float64, its backends against each other."""

import pytest
import torch
from step_problems import BOUNDS, assert_as_good_as_eager, assert_within, error, images

from fastadv.ops import backend
from fastadv.ops.steps import l2


def column(value, x):
    value = torch.as_tensor(value, dtype=torch.float64, device=x.device)
    return value.expand(len(x)).view(-1, *[1] * (x.ndim - 1))


def norm(t):
    return t.flatten(1).norm(dim=1).view(-1, *[1] * (t.ndim - 1))


def exact_step(x_adv, grad, x, step_size, eps, bounds=BOUNDS, guard=0.0):
    """The closed form in float64; gradients must not be zero."""
    x_adv, grad, x = x_adv.double(), grad.double(), x.double()
    u = x_adv - x + column(step_size, x) * grad / (norm(grad) + guard)
    moved = x + u * (column(eps, x) / norm(u)).clamp(max=1)
    return moved if bounds is None else moved.clamp(*bounds)


SHAPES = [(2, 1), (2, 15), (2, 17), (2, 1023), (2, 3, 32, 32), (2, 5000), (3, 2, 2, 3, 4)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("eps", [0.2, 100.0], ids=["outside", "inside"])
def test_step_is_the_closed_form(shape, eps, either_backend, device):
    x_adv, grad, x = images(device, *shape)
    exact = exact_step(x_adv, grad, x, 0.3, eps)
    eager = l2.l2_step_reference(x_adv, grad, x, step_size=0.3, eps=eps)
    got = l2.l2_step(x_adv, grad, x, step_size=0.3, eps=eps)
    assert_as_good_as_eager(got, eager, exact)
    assert error(eager, exact) < 2e-7  # 2 ulp of values in [0.5, 1)
    assert_within(got, x, eps, p=2)


# 16500: 129 chunks, more than are read at once
@pytest.mark.parametrize(("batch", "size"), [(2, 65), (2, 128), (2, 129), (2, 1000), (1, 16500)])
def test_long_rows_are_the_closed_form(batch, size, short_l2_rows, device):
    x_adv, grad, x = images(device, batch, size)
    exact = exact_step(x_adv, grad, x, 0.3, 0.2)
    eager = l2.l2_step_reference(x_adv, grad, x, step_size=0.3, eps=0.2)
    with backend.use_backend("triton"):
        got = l2.l2_step(x_adv, grad, x, step_size=0.3, eps=0.2)
    assert_as_good_as_eager(got, eager, exact)
    assert_within(got, x, 0.2, p=2)


def test_long_rows_at_the_real_limit(device):
    x_adv, grad, x = images(device, 1, 3, 60, 60)
    with backend.use_backend("triton"):
        got = l2.l2_step(x_adv, grad, x, step_size=0.3, eps=0.5)
    eager = l2.l2_step_reference(x_adv, grad, x, step_size=0.3, eps=0.5)
    assert_as_good_as_eager(got, eager, exact_step(x_adv, grad, x, 0.3, 0.5))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("long", [False, True])
def test_other_dtypes_are_the_closed_form(dtype, long, either_backend, request, device):
    if long:
        request.getfixturevalue("short_l2_rows")
    x_adv, grad, x = images(device, 2, 3, 8, 8, dtype=dtype)
    got = l2.l2_step(x_adv, grad, x, step_size=0.3, eps=0.2)
    eager = l2.l2_step_reference(x_adv, grad, x, step_size=0.3, eps=0.2)
    assert got.dtype == dtype
    assert_as_good_as_eager(got, eager, exact_step(x_adv, grad, x, 0.3, 0.2))
    assert_within(got, x, 0.2, p=2)


@pytest.mark.parametrize("long", [False, True])
def test_step_size_and_eps_may_be_per_sample(long, either_backend, request, device):
    if long:
        request.getfixturevalue("short_l2_rows")
    x_adv, grad, x = images(device, 3, 100)
    step = torch.tensor([0.1, -0.2, 5.0], device=device)
    eps = torch.tensor([0.05, 10.0, 0.7], device=device)
    got = l2.l2_step(x_adv, grad, x, step_size=step, eps=eps)
    exact = exact_step(x_adv, grad, x, step, eps)
    assert error(got, exact) < 2e-7
    assert_within(got, x, eps, p=2)


@pytest.mark.parametrize("bounds", [(-1.0, 2.0), (0.3, 0.6), None], ids=str)
def test_bounds(bounds, either_backend, device):
    x_adv, grad, x = images(device, 2, 100)
    got = l2.l2_step(x_adv, grad, x, step_size=4.0, eps=3.0, bounds=bounds)
    assert error(got, exact_step(x_adv, grad, x, 4.0, 3.0, bounds)) < 5e-7


def test_guard_is_added_to_the_norm(either_backend, device):
    x_adv, grad, x = images(device, 2, 100)
    grad *= 1e-10
    got = l2.l2_step(x_adv, grad, x, step_size=0.3, eps=9.0, guard=1e-9)
    exact = exact_step(x_adv, grad, x, 0.3, 9.0, guard=1e-9)
    assert error(got, exact) < 2e-7
    assert error(exact_step(x_adv, grad, x, 0.3, 9.0), exact) > 1e-3  # the guard shows


@pytest.mark.parametrize("size", [1e-44, 1e-40, 1e-30, 1e-15, 1e30, 3e38], ids=str)
@pytest.mark.parametrize("long", [False, True])
def test_gradients_of_any_size_give_a_full_step(size, long, either_backend, request, device):
    if long:
        request.getfixturevalue("short_l2_rows")
    _, grad, x = images(device, 2, 300)
    x = 0.5 + 0.0 * x
    grad = (grad.double() / grad.double().abs().max() * size).float()
    got = l2.l2_step(x, grad, x, step_size=0.3, eps=9.0)
    assert error(got, exact_step(x, grad, x, 0.3, 9.0)) < 2e-7
    assert torch.allclose((got - x).norm(dim=1), torch.tensor(0.3, device=device), rtol=1e-4)


def test_chunks_of_very_different_size_add_up(short_l2_rows, device):
    x_adv, grad, x = images(device, 2, 600)
    grad[0, :256] *= 1e-30
    grad[0, 256:384] = 0.0
    grad[1, :128] *= 1e30
    with backend.use_backend("triton"):
        got = l2.l2_step(x_adv, grad, x, step_size=0.3, eps=0.2)
    assert error(got, exact_step(x_adv, grad, x, 0.3, 0.2)) < 2e-7


@pytest.mark.parametrize("long", [False, True])
@pytest.mark.parametrize("guard", [0.0, 1e-10])
def test_zero_gradient_leaves_the_input_unchanged(long, guard, either_backend, request, device):
    if long:
        request.getfixturevalue("short_l2_rows")
    x_adv, grad, x = images(device, 2, 100, near=0.01)
    grad[0] = 0.0
    got = l2.l2_step(x_adv, grad, x, step_size=0.3, eps=0.5, guard=guard)
    assert torch.equal(got[0], x_adv[0])
    assert error(got[1:], exact_step(x_adv, grad, x, 0.3, 0.5, guard=guard)[1:]) < 2e-7


def test_zero_gradient_still_projects_and_clamps(either_backend, device):
    x_adv, grad, x = images(device, 2, 100, near=1.0)
    got = l2.l2_step(x_adv, torch.zeros_like(grad), x, step_size=0.3, eps=0.5)
    assert error(got, exact_step(x_adv, torch.ones_like(x), x, 0.0, 0.5)) < 2e-7


@pytest.mark.parametrize("long", [False, True])
def test_nan_gradients_count_as_zero(long, either_backend, request, device):
    if long:
        request.getfixturevalue("short_l2_rows")
    x_adv, grad, x = images(device, 2, 100)
    grad[0, ::3] = float("nan")
    got = l2.l2_step(x_adv, grad, x, step_size=0.3, eps=0.2)
    assert error(got, exact_step(x_adv, grad.nan_to_num(0.0), x, 0.3, 0.2)) < 2e-7


@pytest.mark.parametrize("long", [False, True])
def test_an_infinite_gradient_takes_no_step(long, either_backend, request, device):
    if long:
        request.getfixturevalue("short_l2_rows")
    x_adv, grad, x = images(device, 2, 200, near=0.01)
    grad[0, 3] = float("-inf")
    got = l2.l2_step(x_adv, grad, x, step_size=0.3, eps=0.5)
    assert torch.equal(got[0], x_adv[0])
    assert not torch.equal(got[1], x_adv[1])


def test_eps_zero_gives_the_clean_input(either_backend, device):
    x_adv, grad, x = images(device, 2, 100)
    assert torch.equal(l2.l2_step(x_adv, grad, x, step_size=0.3, eps=0.0), x)


@pytest.mark.parametrize("long", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_momentum_is_mifgsm_along_the_l2_direction(long, dtype, either_backend, request, device):
    if long:
        request.getfixturevalue("short_l2_rows")
    x_adv, grad, x = images(device, 2, 300, dtype=dtype)
    momentum = torch.randn(2, 300, generator=torch.Generator().manual_seed(1)).to(device)
    unit = grad.double() / grad.double().abs().mean(1, keepdim=True)
    m = 0.9 * momentum.double() + unit
    exact = exact_step(x_adv, m, x, 0.3, 0.2)
    l2.l2_step_(x_adv, grad, x, step_size=0.3, eps=0.2, momentum=momentum, decay=0.9)
    assert error(momentum, m) < 1e-6
    assert error(x_adv, exact) < (2e-7 if dtype == torch.float32 else 1e-15)


def test_zero_and_infinite_gradients_add_no_momentum(either_backend, device):
    x_adv, grad, x = images(device, 2, 100)
    grad[0], grad[1, 5] = 0.0, float("inf")
    momentum = torch.ones_like(x)
    l2.l2_step_(x_adv, grad, x, step_size=0.3, eps=0.2, momentum=momentum, decay=0.5)
    assert torch.equal(momentum, torch.full_like(x, 0.5))
