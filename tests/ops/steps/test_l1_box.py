"""L1 steps in boxes, element by element: the plain step of what is not held."""

import pytest
import torch
from box_problems import drawn
from step_problems import images

from fastadv.kernels import slots as columns
from fastadv.ops.steps.box import packed
from fastadv.ops.steps.l1 import l1_step, l1_step_
from fastadv.ops.steps.l1_box import l1_step_in_box_

ATOL = 4e-7  # of values up to 1, in units of 0.5 to 1.5
STEP = dict(step_size=0.6, eps=0.8, sparsity=0.3)


def problem(device, *shape, units):
    """(x_adv, grad, x, lower, upper, unit, held): unit is 0 where elements are held."""
    x_adv, grad, x = images(device, *shape)
    lower, upper, unit = drawn(x, units=True)
    held = lower >= upper
    unit = torch.where(held, 0.0, unit if units else 1.0)
    x_adv = torch.where(held, x, x + 0.05 * (x_adv - x))
    return torch.clamp(x_adv, lower, upper), grad, x, lower, upper, unit, held


def test_common_bounds_are_the_plain_step_of_a_masked_gradient(implementation, device):
    x_adv, grad, x, lower, upper, unit, held = problem(device, 3, 5, 41, units=False)
    grad[held] = float("nan")
    box = packed(lower, upper, unit, x)
    got = l1_step_in_box_(
        x_adv.clone(), grad, x, box=box, in_units=False, clamps=False, bounds=(0.0, 1.0), **STEP
    )
    masked = grad.masked_fill(held, 0.0)
    assert torch.equal(got, l1_step(x_adv, masked, x, bounds=(0.0, 1.0), **STEP))
    assert held.any() and torch.equal(got[held], x[held])


@pytest.mark.parametrize("units", [False, True], ids=["bounds", "units"])
def test_bounds_and_units(units, implementation, device):
    x_adv, grad, x, lower, upper, unit, held = problem(device, 3, 5, 41, units=units)
    scale = torch.where(held, 1.0, unit).double()
    inner = (x_adv.double() - x) / scale, (grad * unit).double(), torch.zeros_like(x).double()
    moved = l1_step(*inner, bounds=None, **STEP)
    expected = torch.clamp(x + moved * scale, lower.double(), upper.double())
    got = l1_step_in_box_(
        x_adv.clone(),
        grad,
        x,
        box=packed(lower, upper, unit, x),
        in_units=units,
        clamps=True,
        bounds=None,
        **STEP,
    )
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=ATOL)
    assert torch.equal(got[held], x[held]) and ((got >= lower) & (got <= upper)).all()
    assert (((got - x) / scale).abs().flatten(1).sum(1) <= STEP["eps"] * (1 + 1e-5)).all()


@pytest.mark.parametrize("units", [False, True], ids=["bounds", "units"])
def test_rows_that_are_done_keep_their_bits(units, implementation, device):
    x_adv, grad, x, lower, upper, unit, _ = problem(device, 3, 140, units=units)
    slots = torch.zeros(3, columns.WIDTH, dtype=torch.int32, device=device)
    slots[1, columns.ACTIVE] = 1
    got = l1_step_in_box_(
        x_adv.clone(),
        grad,
        x,
        box=packed(lower, upper, unit, x),
        in_units=units,
        clamps=True,
        bounds=None,
        slots=slots,
        **STEP,
    )
    assert torch.equal(got[[0, 2]], x_adv[[0, 2]]) and not torch.equal(got[1], x_adv[1])


def test_without_held_elements_the_box_is_the_plain_step(implementation, device):
    x_adv, grad, x = images(device, 2, 3, 8, 8)
    ones = torch.ones_like(x)
    got = l1_step_in_box_(
        x_adv.clone(),
        grad,
        x,
        box=packed(ones * -9, ones * 9, ones, x),
        in_units=False,
        clamps=True,
        bounds=None,
        **STEP,
    )
    assert torch.equal(got, l1_step_(x_adv.clone(), grad, x, bounds=None, **STEP))
