"""Random starts in boxes, element by element."""

import pytest
import torch
from box_problems import box_of, planes_of
from start_problems import images

from fastadv import ops


@pytest.mark.parametrize(
    "kind, units",
    [("l2_uniform", True), ("l2_sphere", False), ("l2_gaussian", False), ("l1_uniform", True)],
)
def test_starts_as_if_held_elements_did_not_exist(kind, units, implementation, device):
    x = images((4, 3, 35), device=device)
    box = box_of(x, units=units)
    lower, upper, unit, held = planes_of(box, x)
    got = ops.random_start(x, eps=0.01, seed=1, kind=kind, bounds=None, box=box)
    assert torch.equal(got[held], x[held])
    inside = (lower < x - 0.01) & (x + 0.01 < upper)
    delta = ((got - x) / unit).double().masked_fill(held, 0.0)
    whole = ops.random_start(x, eps=0.01, seed=1, kind=kind, bounds=None).sub(x).double()
    # the same direction, longer: of a ball or sphere of fewer dimensions
    ratio = torch.where(inside & ~held, delta / whole, torch.nan).flatten(1)
    spread = ratio.nanquantile(0.9, dim=1) / ratio.nanquantile(0.1, dim=1)
    assert (spread < 1.01).all()
    if kind == "l2_sphere":
        shorter = whole.masked_fill(held, 0.0).flatten(1).norm(dim=1) / 0.01
        torch.testing.assert_close(ratio.nanmedian(dim=1).values, 1 / shorter, rtol=1e-4, atol=0)
