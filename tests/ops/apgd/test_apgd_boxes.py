"""APGD's steps in boxes, element by element: they are the plain expressions."""

import pytest
import torch
from apgd_problems import MidAttack
from box_problems import box_of, planes_of

from fastadv.ops import use_backend
from fastadv.ops.apgd.l2 import apgd_l2_step_
from fastadv.ops.apgd.linf import apgd_linf_step_
from fastadv.ops.steps.box import packed

UNITS = pytest.mark.parametrize("units", [False, True], ids=["bounds", "units"])
ATOL = 2e-7  # of values up to 1: what implementations of L2 differ by


@UNITS
def test_apgd_in_linf(units, implementation, device):
    case = MidAttack(device, 3, 35)
    x = case.images["x"]
    box = box_of(x, units=units, ball=0.05)
    lower, upper, unit, _ = planes_of(box, x)
    planes = iter(zip(lower, upper, unit, strict=True))

    def move(z, g, x, previous, step_size, eps, a, lo, hi):
        low, high, unit = next(planes)
        z1 = torch.clamp(z + step_size * unit * torch.sign(g), low, high)
        return torch.clamp(z + (z1 - z) * a + (z - previous) * (1 - a), low, high)

    expected = case.expected(move)
    given, keywords = case.arguments()
    apgd_linf_step_(*given, **keywords, box=box)
    for a, b in zip([*given[:4], keywords["x_hit"]], expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@UNITS
def test_apgd_in_l2(units, implementation, device):
    case = MidAttack(device, 3, 35, eps=0.3)
    x = case.images["x"]
    box = box_of(x, units=units)
    planes = iter(zip(*planes_of(box, x), strict=True))

    def move(z, g, x, previous, step_size, eps, a, lo, hi):
        low, high, unit, held = next(planes)

        def project(w):
            length = ((w - x) / unit).norm()
            return torch.clamp(
                x + (w - x) * torch.minimum(eps / length, length / length), low, high
            )

        g = (g * unit).masked_fill(held, 0.0)
        z1 = project(z + unit * step_size * g / g.norm())
        return project(z + (z1 - z) * a + (z - previous) * (1 - a))

    expected = case.expected(move)
    given, keywords = case.arguments()
    apgd_l2_step_(*given, **keywords, box=box)
    for a, b in zip([*given[:4], keywords["x_hit"]], expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=ATOL, equal_nan=True)


@pytest.mark.parametrize("step", [apgd_linf_step_, apgd_l2_step_])
def test_a_box_of_bounds_alone_is_those_bounds(step, implementation, device):
    case = MidAttack(device, 77, eps=0.3)
    x, eps = case.images["x"], case.eps[:, None]
    ball = (x - eps, x + eps) if step is apgd_linf_step_ else (-torch.inf, torch.inf)
    lower, upper = (torch.as_tensor(side, device=device).clamp(0, 1) for side in ball)
    given, keywords = case.arguments()
    step(*given, **keywords)
    boxed, more = case.arguments()
    step(*boxed, **more, box=packed(lower, upper, None, x))
    for a, b in zip(boxed, given, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("step", [apgd_linf_step_, apgd_l2_step_])
def test_one_launch(step, count_launches, device):
    case = MidAttack(device, 41)
    given, keywords = case.arguments()
    with use_backend("triton"), count_launches() as launches:
        step(*given, **keywords, box=box_of(case.images["x"], units=True))
    assert len(launches) == 1
