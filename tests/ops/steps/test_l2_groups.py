"""The L2 step on long rows, a group of rows at a time: the same bits, in as many launches."""

import pytest
import torch

from fastadv.ops import backend
from fastadv.ops.steps import l2

pytest.importorskip("triton", reason="needs triton, which is installed on Linux only")

ROWS, SIZE = 5, 300


def stepped(device, momentum: bool) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x_adv, grad, x, m = (torch.rand(ROWS, SIZE, generator=generator).to(device) for _ in range(4))
    eps = torch.linspace(0.1, 0.5, ROWS, device=device)
    with backend.use_backend("triton"):
        l2.l2_step_(x_adv, grad, x, step_size=0.3, eps=eps, momentum=m if momentum else None)
    return [x_adv, m]


@pytest.mark.parametrize("momentum", [False, True])
@pytest.mark.parametrize("rows, groups", [(1, 5), (2, 3), (4, 2), (5, 1), (9, 1)])
def test_groups_change_no_bit(
    rows, groups, momentum, short_l2_rows, count_launches, monkeypatch, device
):
    expected = stepped(device, momentum)
    tensors = 4 if momentum else 3
    monkeypatch.setattr(short_l2_rows, "CACHED", rows * SIZE * 4 * tensors)
    with count_launches() as launches:
        found = stepped(device, momentum)
    assert len(launches) == groups * (3 if momentum else 2)
    assert all(map(torch.equal, found, expected))


def test_a_row_that_fits_no_cache_is_a_group(short_l2_rows, count_launches, monkeypatch, device):
    expected = stepped(device, False)
    monkeypatch.setattr(short_l2_rows, "CACHED", 1)
    with count_launches() as launches:
        found = stepped(device, False)
    assert len(launches) == 2 * ROWS and torch.equal(found[0], expected[0])
