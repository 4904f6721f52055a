"""Philox draws: their distributions, and the formulas behind them in float64."""

import math

import pytest
import torch
from philox_problems import eager
from scipy import stats

from fastadv.kernels.noise import streams
from fastadv.ops.noise import philox
from fastadv.ops.noise import reference as eager_philox


def _many(kind, seed=11):
    return eager(kind, seed, torch.arange(64), 0, 4096).double().flatten().numpy()


def test_words_use_every_bit():
    words = philox.words(2, torch.arange(64), 0, 0, 4096).flatten()
    ones = torch.stack([(words >> bit & 1).sum() for bit in range(32)]).double()
    deviation = (ones - len(words) / 2) / math.sqrt(len(words) / 4)
    assert deviation.abs().max() < 4.5  # 32 bits: one in 5,000


def test_uniforms_are_uniform_and_below_one():
    u = _many("uniforms")
    assert u.min() >= 0 and u.max() < 1
    assert stats.kstest(u, "uniform").pvalue > 1e-3
    assert stats.kstest(u**1.02, "uniform").pvalue < 1e-3  # the test sees 2 %


def test_normals_are_normal():
    n = _many("normals")
    assert stats.kstest(n, "norm").pvalue > 1e-3
    assert stats.kstest(n * 1.02, "norm").pvalue < 1e-3
    assert abs(stats.kurtosis(n)) < 5 * math.sqrt(24 / len(n))


@pytest.mark.parametrize("lag", [1, 2, 3, 4, 5])
def test_neighbouring_normals_are_independent(lag):
    n = torch.from_numpy(_many("normals"))
    for one, other in ((n, n), (n * n - 1, n * n - 1), (n, n * n - 1)):
        product = one[lag:] * other[:-lag]
        assert abs(product.mean() / product.std()) * math.sqrt(len(product)) < 4.5


def test_exponentials_are_exponential_and_their_signs_independent():
    drawn = _many("signed_exponentials")
    assert stats.kstest(abs(drawn), "expon").pvalue > 1e-3
    assert stats.kstest(abs(drawn) * 1.02, "expon").pvalue < 1e-3
    assert stats.kstest(drawn, "laplace").pvalue > 1e-3


def _word(upper):
    """Words whose uniform is upper * 2^-24."""
    return torch.as_tensor(upper, dtype=torch.int64) << 8


def test_the_ends_of_the_range_are_finite():
    upper = _word([0, 1, 2**24 - 1])
    expected = [0.0, -math.log1p(-(2.0**-24)), 24 * math.log(2)]
    assert eager_philox._exponential(upper).tolist() == pytest.approx(expected, rel=1.2e-7)
    assert math.copysign(1.0, eager_philox._exponential(upper)[0]) == 1.0
    radius = eager_philox._normal_pair(upper, _word([0, 0, 0]))[0]
    assert radius[0] == 0 and radius[2] == pytest.approx(math.sqrt(48 * math.log(2)), rel=2e-7)


def test_exponentials_are_within_1e_7_of_the_logarithm():
    upper = torch.cat([torch.arange(0, 2**24, 37), torch.arange(2**24 - 4096, 2**24)])
    exact = -torch.log1p(-upper.double() * 2.0**-24)
    error = (eager_philox._exponential(_word(upper)).double() - exact).abs()
    assert (error <= 1e-7 * exact).all()  # all 2^24: 8.1e-8


def test_normals_are_within_1e_6_of_box_and_muller():
    """The bound over all 2^48 pairs of words, from the errors of radius and angle, is 8.3e-7."""
    radii = torch.cat([torch.arange(2**24 - 256, 2**24), torch.arange(0, 2**24, 2**18 + 3)])
    turns = torch.arange(0, 2**24, 6007)
    radius = (-2 * torch.log1p(-radii.double() * 2.0**-24)).sqrt()[:, None]
    angle = turns.double() * (2 * math.pi / 2**24)
    across, up = eager_philox._normal_pair(_word(radii)[:, None], _word(turns)[None])
    assert (across.double() - radius * angle.cos()).abs().max() < 1e-6
    assert (up.double() - radius * angle.sin()).abs().max() < 1e-6


def test_random_integers_are_uniform():
    drawn = philox.random_integers(4, torch.arange(20000), streams.TARGET, 0, 9)
    counts = torch.bincount(drawn, minlength=9)
    assert len(counts) == 9
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3
