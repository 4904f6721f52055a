"""What the L1 step promises of layouts, slots, model inputs, batches, launches and arguments."""

import pytest
import torch
from step_problems import images

from fastadv.ops import backend
from fastadv.ops.steps import l1, l1_projection


def test_empty_batch(either_backend, device):
    x = torch.rand(0, 3, 4, 4, device=device)
    assert l1_projection.project_l1(x, x, eps=0.5).shape == x.shape
    assert l1.l1_step_(x, x, x, step_size=0.1, eps=0.5, momentum=torch.zeros_like(x)) is x


def test_channels_last_and_sliced_tensors(either_backend, device):
    tensors = images(device, 2, 3, 5, 8)
    step = dict(step_size=2.0, eps=4.0)
    expected = l1.l1_step(*tensors, **step)
    turned = [t.to(memory_format=torch.channels_last) for t in tensors]
    got = l1.l1_step(*turned, **step)
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(got, expected, rtol=0, atol=2e-7)  # sums in another order
    x_adv, grad, x = (torch.cat([t, t], -1)[..., ::2] for t in tensors)
    expected = l1.l1_step(*(t.contiguous() for t in (x_adv, grad, x)), **step)
    assert torch.equal(
        l1_projection.project_l1(x_adv, x, eps=4.0),
        l1_projection.project_l1(x_adv.contiguous(), x.contiguous(), eps=4.0),
    )
    assert l1.l1_step_(x_adv, grad, x, **step) is x_adv
    assert torch.equal(x_adv, expected)


@pytest.mark.parametrize("long", [False, True])
def test_inactive_slots_are_left_alone(long, either_backend, request, device):
    if long:
        request.getfixturevalue("short_l1_rows")
    from fastadv.kernels import slots as slot_columns

    x_adv, grad, x = images(device, 3, 100)
    slots = torch.zeros(3, slot_columns.WIDTH, dtype=torch.int32, device=device)
    slots[::2, slot_columns.ACTIVE] = 1
    expected = l1.l1_step(x_adv, grad, x, step_size=2.0, eps=4.0)
    before, m = x_adv.clone(), torch.ones_like(x_adv)
    l1.l1_step_(x_adv, grad, x, step_size=2.0, eps=4.0, slots=slots)
    assert torch.equal(x_adv[1], before[1])
    assert torch.equal(x_adv[::2], expected[::2])
    l1.l1_step_(x_adv, grad, x, step_size=2.0, eps=4.0, slots=slots, momentum=m)
    assert torch.equal(m[1], torch.ones_like(m[1])) and torch.equal(x_adv[1], before[1])
    assert (m[::2] != 1).any()


@pytest.mark.parametrize("long", [False, True])
@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_model_input_is_the_normalised_step(
    long, cross, channels_last, either_backend, request, device
):
    if long:
        request.getfixturevalue("short_l1_rows")
    formats = [torch.contiguous_format, torch.channels_last]
    mean = torch.tensor([0.5, 0.4, 0.3], device=device)
    std = torch.tensor([0.1, 0.3, 0.5], device=device)  # changes which gradients are largest
    x_adv, grad, x = images(device, 2, 3, 5, 6)
    x_adv = x_adv.to(memory_format=formats[channels_last])
    like = grad.half().to(memory_format=formats[channels_last != cross])
    step = dict(step_size=2.0, eps=4.0)
    expected = l1.l1_step(x_adv, like.float() / std.view(3, 1, 1), x, **step)
    assert not torch.allclose(expected, l1.l1_step(x_adv, like.float(), x, **step), atol=1e-3)
    model_input = torch.full_like(like, float("nan"))
    l1.l1_step_(x_adv, like, x, **step, model_input=model_input, mean=mean, std=std)
    assert torch.allclose(x_adv, expected, rtol=0, atol=2e-7)
    normalised = (x_adv - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    assert torch.equal(model_input, normalised.half())


@pytest.mark.parametrize("long", [False, True])
def test_a_sample_moves_alike_in_any_batch(long, either_backend, request, device):
    if long:
        request.getfixturevalue("short_l1_rows")
    tensors = images(device, 12, 3, 6, 6)
    whole = l1.l1_step(*tensors, step_size=2.0, eps=4.0)
    first = l1.l1_step(*(t[:1].clone() for t in tensors), step_size=2.0, eps=4.0)
    seven = l1.l1_step(*(t[4:11].clone() for t in tensors), step_size=2.0, eps=4.0)
    assert torch.equal(first, whole[:1]) and torch.equal(seven, whole[4:11])


@pytest.mark.parametrize("shape", [(64, 3, 4, 4), (3, 3, 224, 224)], ids=str)
def test_the_reference_ignores_batch_size_and_threads(shape):
    tensors = images("cpu", *shape)
    eps = 0.02 * tensors[0][0].numel()
    threads = torch.get_num_threads()
    whole = l1.l1_step_reference(*tensors, step_size=2.0, eps=eps)
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        other = l1.l1_step_reference(*tensors, step_size=2.0, eps=eps)
    finally:
        torch.set_num_threads(threads)
    single = l1.l1_step_reference(*(t[2:3] for t in tensors), step_size=2.0, eps=eps)
    assert torch.equal(whole, other) and torch.equal(whole[2:3], single)


@pytest.mark.parametrize("size", [60, 1000])
def test_one_launch_writes_every_element(size, short_l1_rows, count_launches, monkeypatch, device):
    x_adv, grad, x = images(device, 2, size)
    poison = torch.full_like(x, float("nan"))
    monkeypatch.setattr(torch, "empty_like", lambda like: poison)
    with backend.use_backend("triton"), count_launches() as launches:
        assert l1_projection.project_l1(x_adv, x, eps=0.5).isfinite().all()
        assert len(launches) == 1
        l1.l1_step_(x_adv, grad, x, step_size=2.0, eps=0.5, momentum=torch.zeros_like(x))
        assert len(launches) == 2


def test_opcheck_and_version_counter(either_backend, device):
    x_adv, grad, x = images(device, 2, 20)
    m = torch.zeros_like(x)
    arguments = (x_adv, grad, x, 0.1, None, 0.5, None, 0.0, 1.0, None, m, 1.0, None, None, None)
    torch.library.opcheck(torch.ops.fastadv.l1_step_.default, (*arguments, 0.2, None))
    torch.library.opcheck(torch.ops.fastadv.project_l1.default, (x_adv, x, 0.5, None, 0.0, 1.0))
    before = x_adv._version, m._version
    l1.l1_step_(x_adv, grad, x, step_size=0.1, eps=0.5, momentum=m)
    assert x_adv._version > before[0] and m._version > before[1]


def test_nothing_records_a_graph(either_backend, device):
    x_adv, grad, x = images(device, 2, 20)
    before = x_adv.clone()
    x_adv.requires_grad_()
    assert not l1_projection.project_l1(x_adv, x, eps=0.5).requires_grad
    assert not l1.l1_step(x_adv, grad, x, step_size=0.1, eps=0.5).requires_grad
    assert torch.equal(x_adv, before)


def test_mismatched_tensors_are_named():
    x = torch.rand(2, 3)
    with pytest.raises(ValueError, match="sparsity must be a float or a \\(2,\\) tensor"):
        l1.l1_step(x, x, x, step_size=0.1, eps=0.5, sparsity=torch.ones(3))
    with pytest.raises(ValueError, match="x must match x_adv"):
        l1_projection.project_l1(x, x[:1], eps=0.5)
