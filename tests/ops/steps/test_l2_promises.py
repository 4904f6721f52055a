"""What the L2 step promises of layouts, slots, model inputs, batches, launches and arguments."""

import pytest
import torch
from step_problems import images

from fastadv.ops import backend
from fastadv.ops.steps import l2


def test_empty_batch(either_backend, device):
    x = torch.rand(0, 3, 4, 4, device=device)
    assert l2.l2_step(x, x, x, step_size=0.1, eps=0.5).shape == x.shape
    momentum = torch.zeros_like(x)
    assert l2.l2_step_(x, x, x, step_size=0.1, eps=0.5, momentum=momentum) is x


def test_channels_last_moves_the_same(either_backend, device):
    x_adv, grad, x = images(device, 2, 3, 5, 7)
    expected = l2.l2_step(x_adv, grad, x, step_size=0.3, eps=0.2)
    turned = [t.to(memory_format=torch.channels_last) for t in (x_adv, grad, x)]
    got = l2.l2_step(*turned, step_size=0.3, eps=0.2)
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(got, expected, rtol=0, atol=2e-7)  # sums in another order


def test_sliced_tensors_are_moved_in_place(either_backend, device):
    x_adv, grad, x = (torch.cat([t, t], -1)[..., ::2] for t in images(device, 2, 3, 5, 8))
    expected = l2.l2_step(*(t.contiguous() for t in (x_adv, grad, x)), step_size=0.3, eps=0.2)
    assert l2.l2_step_(x_adv, grad, x, step_size=0.3, eps=0.2) is x_adv
    assert torch.equal(x_adv, expected)


@pytest.mark.parametrize("long", [False, True])
def test_inactive_slots_are_left_alone(long, either_backend, request, device):
    if long:
        request.getfixturevalue("short_l2_rows")
    from fastadv.kernels import slots as slot_columns

    x_adv, grad, x = images(device, 3, 100)
    slots = torch.zeros(3, slot_columns.WIDTH, dtype=torch.int32, device=device)
    slots[::2, slot_columns.ACTIVE] = 1
    expected = l2.l2_step(x_adv, grad, x, step_size=0.3, eps=0.2)
    before, m = x_adv.clone(), torch.ones_like(x_adv)
    l2.l2_step_(x_adv, grad, x, step_size=0.3, eps=0.2, slots=slots)
    assert torch.equal(x_adv[1], before[1])
    assert torch.equal(x_adv[::2], expected[::2])
    l2.l2_step_(x_adv, grad, x, step_size=0.3, eps=0.2, slots=slots, momentum=m)
    assert torch.equal(m[1], torch.ones_like(m[1])) and torch.equal(x_adv[1], before[1])
    assert (m[::2] != 1).any()


@pytest.mark.parametrize("long", [False, True])
@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_model_input_is_the_normalised_step(
    long, cross, channels_last, either_backend, request, device
):
    if long:
        request.getfixturevalue("short_l2_rows")
    formats = [torch.contiguous_format, torch.channels_last]
    mean = torch.tensor([0.5, 0.4, 0.3], device=device)
    std = torch.tensor([0.2, 0.3, 0.25], device=device)
    x_adv, grad, x = images(device, 2, 3, 5, 6)
    x_adv = x_adv.to(memory_format=formats[channels_last])
    expected = l2.l2_step(x_adv, grad / std.view(3, 1, 1), x, step_size=0.3, eps=0.2)
    like = grad.half().to(memory_format=formats[channels_last != cross])
    expected_half = l2.l2_step(x_adv, like.float() / std.view(3, 1, 1), x, step_size=0.3, eps=0.2)
    model_input = torch.full_like(like, float("nan"))
    l2.l2_step_(x_adv, like, x, step_size=0.3, eps=0.2, model_input=model_input, mean=mean, std=std)
    assert torch.allclose(x_adv, expected_half, rtol=0, atol=2e-7)
    assert not torch.equal(expected, expected_half)
    normalised = (x_adv - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    assert torch.equal(model_input, normalised.half())


@pytest.mark.parametrize("long", [False, True])
def test_a_sample_moves_alike_in_any_batch(long, either_backend, request, device):
    if long:
        request.getfixturevalue("short_l2_rows")
    tensors = images(device, 16, 3, 6, 6)
    whole = l2.l2_step(*tensors, step_size=0.3, eps=0.2)
    first = l2.l2_step(*(t[:1].clone() for t in tensors), step_size=0.3, eps=0.2)
    seven = l2.l2_step(*(t[5:12].clone() for t in tensors), step_size=0.3, eps=0.2)
    assert torch.equal(first, whole[:1]) and torch.equal(seven, whole[5:12])


@pytest.mark.parametrize("shape", [(64, 3, 4, 4), (4, 3, 224, 224)], ids=str)
def test_the_reference_ignores_batch_size_and_threads(shape):
    tensors = images("cpu", *shape)
    threads = torch.get_num_threads()
    whole = l2.l2_step_reference(*tensors, step_size=0.3, eps=0.2)
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        other = l2.l2_step_reference(*tensors, step_size=0.3, eps=0.2)
    finally:
        torch.set_num_threads(threads)
    single = l2.l2_step_reference(*(t[2:3] for t in tensors), step_size=0.3, eps=0.2)
    assert torch.equal(whole, other) and torch.equal(whole[2:3], single)


@pytest.mark.parametrize(
    ("size", "momentum", "expected"),
    [(64, False, 1), (64, True, 1), (1000, False, 2), (1000, True, 3)],
)
def test_launches(size, momentum, expected, short_l2_rows, count_launches, device):
    x_adv, grad, x = images(device, 2, size)
    m = torch.zeros_like(x) if momentum else None
    with backend.use_backend("triton"), count_launches() as launches:
        l2.l2_step_(x_adv, grad, x, step_size=0.3, eps=0.2, momentum=m)
    assert len(launches) == expected


def test_the_workspace_is_written_before_it_is_read(short_l2_rows, monkeypatch, device):
    x_adv, grad, x = images(device, 2, 1000)
    expected = l2.l2_step_reference(x_adv, grad, x, step_size=0.3, eps=0.2)
    monkeypatch.setattr(
        torch, "empty", lambda shape, **options: torch.full(shape, float("nan"), **options)
    )
    with backend.use_backend("triton"):
        got = l2.l2_step(x_adv, grad, x, step_size=0.3, eps=0.2)
    assert torch.allclose(got, expected, rtol=0, atol=2e-7)


def test_opcheck_and_version_counter(either_backend, device):
    x_adv, grad, x = images(device, 2, 20)
    state = torch.zeros_like(x)
    arguments = (x_adv, grad, x, 0.1, None, 0.5, None, 0.0, 1.0, None, state, 1.0, None, None, None)
    torch.library.opcheck(torch.ops.fastadv.l2_step_.default, (*arguments, None, 0.0))
    before = x_adv._version, state._version
    l2.l2_step_(x_adv, grad, x, step_size=0.1, eps=0.5, momentum=state)
    assert x_adv._version > before[0] and state._version > before[1]


def test_step_leaves_its_inputs_and_records_no_graph(either_backend, device):
    x_adv, grad, x = images(device, 2, 20)
    x_adv.requires_grad_()
    before = x_adv.detach().clone()
    got = l2.l2_step(x_adv, grad, x, step_size=0.1, eps=0.5)
    assert not got.requires_grad and torch.equal(x_adv, before)


def test_mismatched_tensors_are_named():
    x = torch.rand(2, 3)
    with pytest.raises(ValueError, match="grad must match x_adv"):
        l2.l2_step(x, x[:1], x, step_size=0.1, eps=0.5)
