"""The row select: which rows it copies, in which layouts, in one launch."""

import pytest
import torch

from fastadv.ops import backend
from fastadv.ops.steps.select import select_rows_


def batch(device, *shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (10 * torch.randn(shape, generator=generator)).to(device, dtype)


@pytest.mark.parametrize("shape", [(5,), (5, 7), (5, 3, 4, 3), (2, 2, 700)])
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool]
)
def test_only_flagged_rows_are_copied(device, either_backend, shape, dtype):
    destination, source = (batch(device, *shape, dtype=dtype, seed=s) for s in (0, 1))
    flags = torch.tensor([1, 0, -3, 0, 1], dtype=torch.int32, device=device)[: shape[0]]
    expected = destination.clone()
    expected[flags != 0] = source[flags != 0]
    assert select_rows_(destination, source, flags) is destination
    assert torch.equal(destination, expected)


def test_flags_may_be_a_column_of_the_slot_state(device, either_backend):
    destination, source = batch(device, 4, 9), batch(device, 4, 9, seed=1)
    slots = torch.ones(4, 5, dtype=torch.int32, device=device)
    slots[:, 4] = torch.tensor([0, 1, 0, 1])
    expected = torch.stack([destination[0], source[1], destination[2], source[3]])
    assert torch.equal(select_rows_(destination, source, slots[:, 4]), expected)


@pytest.mark.parametrize("source_format", [torch.contiguous_format, torch.channels_last])
def test_channels_last_keeps_its_layout(device, either_backend, source_format):
    destination = batch(device, 2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    source = batch(device, 2, 3, 4, 4, seed=1).contiguous(memory_format=source_format)
    flags = torch.tensor([0, 1], dtype=torch.int32, device=device)
    expected = torch.stack([destination[0], source[1]])
    select_rows_(destination, source, flags)
    assert torch.equal(destination, expected)
    assert destination.is_contiguous(memory_format=torch.channels_last)


def test_a_copy_is_exact_even_for_nan_and_infinity(device, either_backend):
    source = torch.tensor([[float("nan"), float("-inf"), -0.0, 1e-45]], device=device)
    destination = torch.full_like(source, 7.0)
    select_rows_(destination, source, torch.ones(1, dtype=torch.int32, device=device))
    assert torch.equal(destination.view(torch.int32), source.view(torch.int32))


def test_nan_in_a_row_that_is_not_flagged_stays_out(device, either_backend):
    destination = torch.zeros(1, 3, device=device)
    source = torch.full_like(destination, float("nan"))
    select_rows_(destination, source, torch.zeros(1, dtype=torch.int32, device=device))
    assert torch.equal(destination, torch.zeros_like(destination))


@pytest.mark.parametrize("shape", [(0, 3), (0,), (2, 0)])
def test_nothing_to_copy(device, either_backend, shape):
    destination = torch.empty(shape, device=device)
    flags = torch.ones(shape[0], dtype=torch.int32, device=device)
    assert select_rows_(destination, destination.clone(), flags).shape == shape


def test_the_version_counter_grows(device, either_backend):
    destination, source = batch(device, 2, 3), batch(device, 2, 3, seed=1)
    before = destination._version
    select_rows_(destination, source, torch.ones(2, dtype=torch.int32, device=device))
    assert destination._version > before


def test_one_launch_a_call(device, count_launches):
    destination, source = batch(device, 3, 2000), batch(device, 3, 2000, seed=1)
    flags = torch.ones(3, dtype=torch.int32, device=device)
    with backend.use_backend("triton"), count_launches() as launches:
        select_rows_(destination, source, flags)
    assert launches == ["select_rows_kernel"]


def test_opcheck(device, either_backend):
    destination, source = batch(device, 3, 5), batch(device, 3, 5, seed=1)
    flags = torch.ones(3, dtype=torch.int32, device=device)
    torch.library.opcheck(torch.ops.fastadv.select_rows_, (destination, source, flags))


def test_mismatched_tensors_are_named(device):
    destination = torch.zeros(2, 3, device=device)
    flags = torch.ones(2, dtype=torch.int32, device=device)
    with pytest.raises(ValueError, match=r"source must match destination: \(2, 3\).*got \(2, 4\)"):
        select_rows_(destination, torch.zeros(2, 4, device=device), flags)
    with pytest.raises(ValueError, match="source must match destination.*float64"):
        select_rows_(destination, destination.double(), flags)
    with pytest.raises(ValueError, match=r"flags must be \(2,\) int32.*torch.int64"):
        select_rows_(destination, destination.clone(), flags.long())
    with pytest.raises(ValueError, match="destination must be dense.*contiguous"):
        select_rows_(torch.zeros(3, 2, device=device).T, destination.clone(), flags)
