"""The L1 projection against the sorted one in float64, on rows of every kind."""

import itertools

import pytest
import torch
from l1_exact import exact_projection
from step_problems import BOUNDS, assert_as_good_as_eager, assert_within, error, images

from fastadv.ops import backend
from fastadv.ops.steps import l1_projection

SHAPES = [(2, 1), (2, 15), (2, 17), (2, 1023), (2, 3, 32, 32), (1, 5000), (3, 2, 2, 3, 4)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("share", [0.002, 0.03, 10.0])
def test_projection_is_the_sorted_one(shape, share, either_backend, device):
    x_adv, _, x = images(device, *shape)
    eps = share * x[0].numel()
    exact = exact_projection(x_adv, x, eps)
    eager = l1_projection.project_l1_reference(x_adv, x, eps=eps)
    got = l1_projection.project_l1(x_adv, x, eps=eps)
    assert_as_good_as_eager(got, eager, exact)
    assert error(eager, exact) < 1e-7  # 1 ulp of values in [0.5, 1)
    assert_within(got, x, eps, p=1)


@pytest.mark.parametrize("size", [65, 129, 1000])
@pytest.mark.parametrize("share", [0.003, 0.03])
def test_long_projection_is_the_sorted_one(size, share, short_l1_rows, device):
    x_adv, _, x = images(device, 2, size)
    with backend.use_backend("triton"):
        got = l1_projection.project_l1(x_adv, x, eps=share * size)
    assert error(got, exact_projection(x_adv, x, share * size)) < 1e-7
    assert_within(got, x, share * size, p=1)


def test_projection_is_nearest_of_all_feasible_points_on_a_grid(either_backend, device):
    x = torch.tensor([[0.2, 0.9, 0.5]], device=device, dtype=torch.float64)
    x_adv = torch.tensor([[1.5, 1.4, -0.1]], device=device, dtype=torch.float64)
    got = l1_projection.project_l1(x_adv, x, eps=0.6)
    axis = torch.linspace(0, 1, 101, dtype=torch.float64)
    grid = torch.tensor(list(itertools.product(axis.tolist(), repeat=3)), device=device)
    feasible = grid[(grid - x).abs().sum(1) <= 0.6 + 1e-9]
    nearest = (feasible - x_adv).norm(dim=1).min()
    assert float((got - x_adv).norm()) <= float(nearest) + 1e-9


def hard_rows(kind, size):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1, size, generator=generator)
    noise = torch.randn(1, size, generator=generator)
    if kind == "normal":
        return x + noise, x
    if kind == "equal":
        return torch.full_like(x, 0.9), torch.full_like(x, 0.5)
    if kind == "binary":
        return torch.rand(1, size, generator=generator), x.round()
    if kind == "cauchy":
        return x + noise / torch.randn(1, size, generator=generator), x
    if kind == "geometric":
        return torch.logspace(-30, 0, size).view(1, -1), torch.zeros(1, size)
    return torch.where(torch.rand(1, size, generator=generator) < 0.01, 1 - x, x), x


@pytest.mark.parametrize("bounds", [BOUNDS, None], ids=str)
@pytest.mark.parametrize("eps", [0.0, 1e-6, 0.5, 12.0, 400.0])
@pytest.mark.parametrize("kind", ["normal", "equal", "binary", "cauchy", "geometric", "sparse"])
def test_projection_of_hard_rows(kind, eps, bounds, either_backend, device):
    x_adv, x = (t.to(device) for t in hard_rows(kind, 900))
    got = l1_projection.project_l1(x_adv, x, eps=eps, bounds=bounds)
    exact = exact_projection(x_adv, x, eps, bounds)
    # x_adv - x is rounded once, as is the result; the sum over the row is right to 4 roundings
    largest = max(1.0, float((x_adv - x).abs().max()))
    assert error(got, exact) <= 2**-24 * (2 * largest + 4 * eps)
    assert_within(got, x, eps, bounds, p=1)


def test_a_row_far_outside_keeps_its_budget(either_backend, device):
    # the threshold is near 100, where one bit is 8e-6: times 3072 elements 0.02, were it not for
    # the correction below its resolution
    x = torch.full((1, 3072), 0.5, device=device)
    x_adv = x + torch.linspace(100.0, 100.001, 3072, device=device)
    got = l1_projection.project_l1(x_adv, x, eps=2.0)
    assert float((got.double() - x.double()).abs().sum()) == pytest.approx(2.0, abs=2e-4)


def test_points_inside_are_returned_as_they_are(either_backend, device):
    x_adv, _, x = images(device, 2, 500)
    assert torch.equal(l1_projection.project_l1(x_adv, x, eps=500.0), x_adv)
    assert torch.equal(l1_projection.project_l1(x_adv, x, eps=0.0), x)
