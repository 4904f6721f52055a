"""8-bit adversarial examples: inside the ball in float64, and as near as rounding allows."""

import pytest
import torch

import fastadv
from fastadv.data import to_unit_interval
from fastadv.quantise import to_uint8

SHAPE = (24, 3, 5, 7)
THREATS = [
    fastadv.Linf(8 / 255),
    fastadv.Linf(0.9 / 255),
    fastadv.Linf(2.5 / 255),
    fastadv.L2(0.5),
    fastadv.L2(1.5 / 255),
    fastadv.L1(3.0),
    fastadv.L1(1.2 / 255),
]


def eight_bit_images(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return to_unit_interval(torch.randint(0, 256, SHAPE, generator=generator, dtype=torch.uint8))


def on_the_sphere(threat: fastadv.L2, x: torch.Tensor) -> torch.Tensor:
    """Random points that the threat model has projected: on its sphere, or in a corner."""
    generator = torch.Generator().manual_seed(1)
    return threat.project(x + torch.randn(x.shape, generator=generator), x)


@pytest.mark.parametrize("threat", THREATS, ids=repr)
def test_decoded_bytes_lie_in_the_ball_in_float64(threat):
    x = eight_bit_images(0)
    decoded = to_unit_interval(to_uint8(on_the_sphere(threat, x), x, threat))

    difference = (decoded.double() - x.double()).flatten(1)
    order = {"linf": torch.inf, "l2": 2, "l1": 1}[threat.norm]
    distance = torch.linalg.vector_norm(difference, order, dim=1)
    # x itself is rounded to float32: one half ulp at each end, added up as the norm does
    slack = 2**-24 * threat.rounding(difference.shape[1])
    assert bool((distance <= threat.eps * (1 + 1e-6) + slack).all())
    assert bool(fastadv.contains(threat, decoded, x).all())


@pytest.mark.parametrize("threat", [fastadv.Linf(8 / 255), fastadv.L2(0.5), fastadv.L1(3.0)])
def test_a_radius_per_sample_is_respected(threat):
    x = eight_bit_images(2)
    radii = torch.linspace(0.0, float(threat.eps), len(x))
    wide = on_the_sphere(threat, x)
    narrow = type(threat)(radii)
    decoded = to_unit_interval(to_uint8(narrow.project(wide, x), x, narrow))
    assert bool(fastadv.contains(narrow, decoded, x).all())


def test_a_whole_number_of_levels_is_reached_in_full():
    x = to_unit_interval(torch.arange(8, 248, dtype=torch.uint8).view(1, -1))
    x_adv = fastadv.ops.linf_step(x, torch.ones_like(x), x, step_size=1.0, eps=8 / 255)
    got = to_uint8(x_adv, x, fastadv.Linf(8 / 255))
    assert torch.equal(got.int(), torch.arange(16, 256).view(1, -1).int())


def test_a_radius_between_levels_is_rounded_towards_x():
    x = to_unit_interval(torch.full((1, 4), 100, dtype=torch.uint8))
    delta = torch.tensor([[2.9, -2.9, 0.4, -0.6]]) / 255
    got = to_uint8(x + delta, x, fastadv.Linf(2.9 / 255))
    assert got.tolist() == [[102, 98, 100, 99]]


def test_inside_the_ball_every_element_goes_to_the_nearest_level():
    x = eight_bit_images(3)
    noise = torch.rand(SHAPE, generator=torch.Generator().manual_seed(4)) - 0.5
    x_adv = (x + noise / 50).clamp(0, 1)
    for threat in (fastadv.Linf(0.5), fastadv.L2(50.0), fastadv.L1(1000.0)):
        got = to_uint8(x_adv, x, threat)
        assert torch.equal(got.double(), (x_adv.double() * 255).round())


@pytest.mark.parametrize("threat", [fastadv.L2(0.5), fastadv.L1(3.0)], ids=repr)
def test_no_element_moves_more_than_one_level(threat):
    x = eight_bit_images(5)
    x_adv = on_the_sphere(threat, x)
    got = to_uint8(x_adv, x, threat)
    # 1 level, and the float32 of x_adv * 255
    assert float((got.double() - x_adv.double() * 255).abs().max()) < 1 + 1e-4


@pytest.mark.parametrize("threat", [fastadv.L2(0.5), fastadv.L1(3.0)], ids=repr)
def test_the_radius_is_used_up_to_one_element(threat):
    x = eight_bit_images(6)
    decoded = to_unit_interval(to_uint8(on_the_sphere(threat, x), x, threat))
    # one element fewer moved would have been outside: a level of the largest change is the slack
    assert float(threat.distance(decoded, x).min()) > 0.9 * threat.eps


def test_x_that_is_not_eight_bit_finds_a_level_within_eps():
    x = torch.tensor([[3.0, 5.0, 11.0]]) / 16
    threat = fastadv.Linf(1 / 255)
    decoded = to_unit_interval(to_uint8(x + 1 / 255, x, threat))
    assert bool(fastadv.contains(threat, decoded, x).all())


@pytest.mark.parametrize("threat", [fastadv.Linf(1e-4), fastadv.L2(1e-4), fastadv.L1(1e-4)])
def test_a_ball_without_an_eight_bit_image_is_refused(threat):
    x = torch.full((2, 3), 3 / 16)
    with pytest.raises(ValueError, match="no 8-bit image lies within eps of x for 2 of 2"):
        to_uint8(x, x, threat)


def test_examples_of_another_ball_are_named_as_such():
    x = torch.zeros(3, 4)
    x_adv = torch.tensor([0.5, 0.1, 0.7])[:, None].expand(3, 4)
    with pytest.raises(
        ValueError, match=r"x_adv lies outside of eps for 2 of 3 samples, one at 0.5"
    ):
        to_uint8(x_adv, x, fastadv.Linf(0.1))


def test_what_is_no_tensor_and_no_threat_model_is_refused_in_words():
    x = torch.zeros(1, 2)
    with pytest.raises(TypeError, match=r"threat must be fastadv.Linf, L2 or L1 with a radius"):
        to_uint8(x, x, 0.1)
    with pytest.raises(TypeError, match="x_adv must be a torch.Tensor; got ndarray"):
        to_uint8(x.numpy(), x, fastadv.Linf(0.1))
    with pytest.raises(TypeError, match="x must be a torch.Tensor; got Linf"):
        to_uint8(x, fastadv.Linf(0.1), x)


def test_other_bounds_are_refused():
    x = torch.zeros(1, 2)
    with pytest.raises(ValueError, match=r"bounds \(0, 1\) for 8-bit images; got \(-1.0, 1.0\)"):
        to_uint8(x, x, fastadv.Linf(0.1, bounds=(-1.0, 1.0)))


@pytest.mark.parametrize("bad", [1.5, -0.1, float("nan")])
def test_pixels_outside_the_unit_interval_are_refused(bad):
    with pytest.raises(ValueError, match=r"x_adv must lie in \[0, 1\]"):
        to_uint8(torch.full((1, 2), bad), torch.zeros(1, 2), fastadv.Linf(0.5))


def test_an_empty_batch_gives_an_empty_batch():
    x = torch.zeros(0, 1, 2, 2)
    assert to_uint8(x, x, fastadv.L2(0.5)).shape == x.shape
