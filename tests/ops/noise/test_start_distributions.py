"""Random starts: each kind has the distribution that its name says."""

import pytest
import torch
from scipy import stats

from fastadv.kernels.noise import streams
from fastadv.ops.noise import philox
from fastadv.ops.noise.start import random_start_reference


def _delta(kind, batch, size, eps=1.0, scale=None, seed=0):
    """Rows of start - x in float64, x = 0."""
    x = torch.zeros(batch, size, dtype=torch.float64)
    return random_start_reference(x, eps=eps, seed=seed, kind=kind, bounds=None, scale=scale)


@pytest.mark.parametrize("kind", ["l2_uniform", "l1_uniform"])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_uniform_in_a_ball_has_a_uniform_power_of_the_radius(kind, size):
    norm = 2 if kind == "l2_uniform" else 1
    radius = torch.linalg.vector_norm(_delta(kind, 4000, size, eps=3.0), norm, dim=1) / 3.0
    assert radius.max() <= 1
    assert stats.kstest((radius**size).numpy(), "uniform").pvalue > 1e-3
    assert stats.kstest((radius ** (size + 1)).numpy(), "uniform").pvalue < 1e-3


@pytest.mark.parametrize("kind", ["l2_uniform", "l2_sphere", "l2_gaussian"])
def test_directions_are_uniform_on_the_sphere(kind):
    delta = _delta(kind, 4000, 3)
    unit = delta / torch.linalg.vector_norm(delta, dim=1, keepdim=True)
    for axis in unit.T:  # Archimedes: each coordinate of a unit vector in space is uniform
        assert stats.kstest(axis.numpy(), stats.uniform(-1, 2).cdf).pvalue > 1e-3
    assert stats.kstest(unit[:, 0].abs().numpy() * 0.9, "uniform").pvalue < 1e-3


def test_l2_sphere_has_the_length_eps():
    for size in (1, 2, 77):
        length = torch.linalg.vector_norm(_delta("l2_sphere", 50, size, eps=0.3), dim=1)
        assert (length - 0.3).abs().max() < 1e-15


def test_l2_gaussian_only_shortens():
    n = philox.normals(0, torch.arange(300), streams.START_NORMAL, 0, 4).double()
    delta = _delta("l2_gaussian", 300, 4, eps=1.0, scale=0.5)
    length = torch.linalg.vector_norm(0.5 * n, dim=1, keepdim=True)
    assert 50 < (length < 1).sum() < 250
    torch.testing.assert_close(delta, 0.5 * n / length.clamp_min(1), rtol=1e-14, atol=0)


def test_l1_uniform_has_dirichlet_shares_and_even_signs():
    size = 4
    delta = _delta("l1_uniform", 4000, size)
    share = delta.abs() / delta.abs().sum(1, keepdim=True)
    for column in share.T:
        assert stats.kstest(column.numpy(), stats.beta(1, size - 1).cdf).pvalue > 1e-3
        assert stats.kstest(column.numpy(), stats.beta(1, size).cdf).pvalue < 1e-3
    orthant = ((delta > 0) * torch.tensor([1, 2, 4, 8])).sum(1)
    assert stats.chisquare(torch.bincount(orthant, minlength=16).numpy()).pvalue > 1e-3


def test_linf_uniform_is_uniform():
    delta = _delta("linf_uniform", 10, 3072, eps=0.5)
    cdf = stats.uniform(-0.5, 1).cdf
    assert stats.kstest(delta.flatten().numpy(), cdf).pvalue > 1e-3
    assert stats.kstest(1.04 * delta.flatten().numpy(), cdf).pvalue < 1e-3


def test_the_gaussian_scale_defaults_to_eps():
    for kind in ("linf_gaussian", "l2_gaussian", "l1_gaussian"):
        assert torch.equal(_delta(kind, 3, 9, eps=0.5), _delta(kind, 3, 9, eps=0.5, scale=0.5))
