"""The L1 step against the sparse one in float64, its backends against each other."""

import itertools

import pytest
import torch
from l1_exact import exact_projection, exact_step
from step_problems import assert_as_good_as_eager, assert_within, error, images

from fastadv.ops import backend
from fastadv.ops.steps import l1, l1_projection

SHAPES = [(2, 1), (2, 15), (2, 17), (2, 1023), (2, 3, 32, 32), (1, 5000), (3, 2, 2, 3, 4)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("long", [False, True])
def test_other_dtypes(dtype, long, either_backend, request, device):
    if long:
        request.getfixturevalue("short_l1_rows")
    x_adv, grad, x = images(device, 2, 3, 8, 8, dtype=dtype)
    got = l1_projection.project_l1(x_adv, x, eps=3.0)
    eager = l1_projection.project_l1_reference(x_adv, x, eps=3.0)
    assert got.dtype == dtype
    assert_as_good_as_eager(got, eager, exact_projection(x_adv, x, 3.0))
    step = dict(step_size=2.0, eps=3.0, sparsity=0.25)
    got = l1.l1_step(x_adv, grad, x, **step)
    eager = l1.l1_step_reference(x_adv, grad, x, **step)
    assert_as_good_as_eager(got, eager, exact_step(x_adv, grad, x, 2.0, 3.0, 0.25))
    assert_within(got, x, 3.0, p=1)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("sparsity", [0.0, 0.05, 0.2, 1.0])
def test_step_is_the_sparse_one(shape, sparsity, either_backend, device):
    x_adv, grad, x = images(device, *shape)
    eps = 0.03 * x[0].numel()
    exact = exact_step(x_adv, grad, x, 2.0, eps, sparsity)
    step = dict(step_size=2.0, eps=eps, sparsity=sparsity)
    got = l1.l1_step(x_adv, grad, x, **step)
    assert_as_good_as_eager(got, l1.l1_step_reference(x_adv, grad, x, **step), exact)
    assert_within(got, x, eps, p=1)


@pytest.mark.parametrize("size", [65, 129, 1000])
@pytest.mark.parametrize("sparsity", [0.0, 0.05, 0.2, 1.0])
def test_long_step_is_the_sparse_one(size, sparsity, short_l1_rows, device):
    x_adv, grad, x = images(device, 2, size)
    eps = 0.03 * size
    with backend.use_backend("triton"):
        got = l1.l1_step(x_adv, grad, x, step_size=2.0, eps=eps, sparsity=sparsity)
    assert error(got, exact_step(x_adv, grad, x, 2.0, eps, sparsity)) < 2e-7
    assert_within(got, x, eps, p=1)


@pytest.mark.parametrize("long", [False, True])
def test_step_parameters_may_be_per_sample(long, either_backend, request, device):
    if long:
        request.getfixturevalue("short_l1_rows")
    x_adv, grad, x = images(device, 3, 100)
    step = torch.tensor([1.0, -2.0, 30.0], device=device)
    eps = torch.tensor([1.0, 50.0, 2.0], device=device)
    sparsity = torch.tensor([0.05, 0.5, 1.0], device=device)
    got = l1.l1_step(x_adv, grad, x, step_size=step, eps=eps, sparsity=sparsity)
    assert error(got, exact_step(x_adv, grad, x, step, eps, sparsity)) < 2e-7
    assert_within(got, x, eps, p=1)


def test_as_many_elements_move_as_in_autoattack(either_backend, device):
    for size, share in itertools.product((1, 7, 100, 784), (0.01, 0.2, 0.3, 0.7, 0.999)):
        _, grad, x = images(device, 1, size)
        x = 0.5 + 0 * x
        moved = l1.l1_step(x, grad, x, step_size=0.4, eps=9.0, sparsity=share) != x
        topk = torch.full((1,), share)
        dropped = torch.clamp((1.0 - topk) * size, min=0, max=size - 1).long()
        assert int(moved.sum()) == size - int(dropped)


@pytest.mark.parametrize("long", [False, True])
def test_ties_are_all_kept_and_zeros_never(long, either_backend, request, device):
    if long:
        request.getfixturevalue("short_l1_rows")
    x = torch.full((3, 100), 0.5, device=device)
    grad = torch.zeros(3, 100, device=device)
    grad[0, :30] = 2.0  # more ties than the 20 asked for
    grad[1, :5] = -1.0  # fewer elements above zero than asked for
    grad[2] = torch.arange(100.0, 0.0, -1.0)
    got = l1.l1_step(x, grad, x, step_size=0.6, eps=9.0, sparsity=0.2)
    for row, (sign, count) in enumerate([(1, 30), (-1, 5), (1, 20)]):
        expected = torch.full((count,), 0.5 + sign * 0.6 / count, device=device)
        assert torch.allclose(got[row, :count], expected, rtol=0, atol=1e-7)
        assert torch.equal(got[row, count:], x[row, count:])


@pytest.mark.parametrize("size", [1e-44, 1e-30, 1e30, 3e38], ids=str)
@pytest.mark.parametrize("long", [False, True])
def test_gradients_of_any_size_move_alike(size, long, either_backend, request, device):
    if long:
        request.getfixturevalue("short_l1_rows")
    x_adv, _, x = images(device, 1, 200)
    sign = torch.ones(1, 200, device=device)
    sign[:, ::3] = -1.0
    sign[:, ::7] = 0.0
    got = l1.l1_step(x_adv, sign * size, x, step_size=2.0, eps=4.0, sparsity=0.2)
    expected = l1.l1_step(x_adv, sign, x, step_size=2.0, eps=4.0, sparsity=0.2)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("long", [False, True])
def test_zero_gradient_leaves_the_input_unchanged(long, either_backend, request, device):
    if long:
        request.getfixturevalue("short_l1_rows")
    x_adv, grad, x = images(device, 2, 100)
    grad[0] = 0.0
    got = l1.l1_step(x_adv, grad, x, step_size=2.0, eps=50.0)
    assert torch.equal(got[0], x_adv[0])
    assert not torch.equal(got[1], x_adv[1])
    got = l1.l1_step(x_adv, grad, x, step_size=2.0, eps=1.0)
    assert torch.equal(got[0], l1_projection.project_l1(x_adv, x, eps=1.0)[0])


@pytest.mark.parametrize("long", [False, True])
def test_nan_gradients_count_as_zero_and_infinite_ones_as_large(
    long, either_backend, request, device
):
    if long:
        request.getfixturevalue("short_l1_rows")
    x_adv, grad, x = images(device, 2, 100)
    grad[0, ::3], grad[1, 5] = float("nan"), float("-inf")
    got = l1.l1_step(x_adv, grad, x, step_size=2.0, eps=4.0, sparsity=0.1)
    grad = grad.nan_to_num(0.0, neginf=-1e3)
    assert error(got, exact_step(x_adv, grad, x, 2.0, 4.0, 0.1)) < 1e-7


@pytest.mark.parametrize("bounds", [(-1.0, 2.0), (0.3, 0.6), None], ids=str)
def test_bounds(bounds, either_backend, device):
    x_adv, grad, x = images(device, 2, 100)
    if bounds is not None:
        x = x.clamp(*bounds)
    got = l1.l1_step(x_adv, grad, x, step_size=20.0, eps=10.0, bounds=bounds)
    assert error(got, exact_step(x_adv, grad, x, 20.0, 10.0, 0.2, bounds)) < 5e-7
    assert_within(got, x, 10.0, bounds, p=1)


def test_a_clean_input_outside_bounds_is_clamped(either_backend, device):
    x_adv, grad, x = images(device, 2, 100)
    x = x * 2 - 0.5
    got = l1.l1_step(x_adv, grad, x, step_size=2.0, eps=10.0)
    assert ((got >= 0) & (got <= 1)).all()


@pytest.mark.parametrize("long", [False, True])
def test_momentum_is_mifgsm_along_its_largest_elements(long, either_backend, request, device):
    if long:
        request.getfixturevalue("short_l1_rows")
    x_adv, grad, x = images(device, 2, 300)
    momentum = torch.randn(2, 300, generator=torch.Generator().manual_seed(1)).to(device)
    unit = grad.double() / grad.double().abs().mean(1, keepdim=True)
    m = 0.9 * momentum.double() + unit
    exact = exact_step(x_adv, m, x, 2.0, 9.0, 0.2)
    l1.l1_step_(x_adv, grad, x, step_size=2.0, eps=9.0, momentum=momentum, decay=0.9)
    assert error(momentum, m) < 1e-6
    assert error(x_adv, exact) < 2e-7
