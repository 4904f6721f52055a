"""Steps in boxes, element by element: they are the plain expressions."""

import pytest
import torch
from box_problems import box_of, drawn, planes_of
from step_problems import images

from fastadv import ops
from fastadv.ops import use_backend
from fastadv.ops.steps.box import packed

UNITS = pytest.mark.parametrize("units", [False, True], ids=["bounds", "units"])
ATOL = 2e-7  # of values up to 1: what implementations of L2 differ by


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@UNITS
def test_an_linf_step(units, dtype, implementation, device):
    x_adv, grad, x = images(device, 3, 5, 41, dtype=dtype)
    box = box_of(x, units=units, ball=0.05)
    lower, upper, unit, held = planes_of(box, x)
    step = torch.tensor([0.01, 0.02, 0.03], device=device, dtype=box.dtype)
    moved = x_adv.to(box.dtype) + step[:, None, None] * unit * grad.to(box.dtype).sign()
    expected = torch.minimum(torch.maximum(moved, lower), upper).to(dtype)
    got = ops.linf_step_(x_adv.clone(), grad, x, step_size=step, eps=9.0, bounds=None, box=box)
    assert torch.equal(got, expected)
    assert held.any() and torch.equal(got[held], x[held])


@UNITS
def test_an_linf_step_with_momentum(units, implementation, device):
    x_adv, grad, x = images(device, 3, 141)
    box = box_of(x, units=units, ball=0.05)
    lower, upper, unit, held = planes_of(box, x)
    momentum = torch.full_like(x, 0.1)
    free = grad.masked_fill(held, 0.0)
    m = 0.5 * momentum + free / free.abs().mean(1, keepdim=True)
    near_zero = (m.abs() < 1e-6) & ~held
    expected = torch.clamp(x_adv + 0.01 * unit * m.sign(), lower, upper)
    got = ops.linf_step_(
        x_adv, grad, x, step_size=0.01, eps=9.0, momentum=momentum, decay=0.5, box=box
    )
    assert torch.equal(got[~near_zero], expected[~near_zero])
    torch.testing.assert_close(momentum, m, rtol=1e-5, atol=1e-6)


def plain_l2(x_adv, grad, x, box, *, step_size, eps):
    """Elements that are held do not exist; lengths are those of v / unit."""
    lower, upper, unit, held = planes_of(box, x)
    scaled = (grad * unit).masked_fill(held, 0.0)
    u = x_adv - x + unit * step_size * scaled / scaled.flatten(1).norm(dim=1)[:, None, None]
    norm = (u / unit).flatten(1).norm(dim=1)[:, None, None]
    return torch.clamp(x + u * (eps / norm).clamp(max=1.0), lower, upper)


@pytest.mark.parametrize("long", [False, True], ids=["short", "long"])
@UNITS
def test_an_l2_step(units, long, implementation, device, request):
    if long:
        request.getfixturevalue("short_rows_of_l2")
    x_adv, grad, x = images(device, 3, 5, 61)
    box = box_of(x, units=units)
    start = torch.clamp(x_adv, *planes_of(box, x)[:2])
    expected = plain_l2(
        *(t.double() for t in (start, grad, x)), box.double(), step_size=0.3, eps=0.4
    )
    got = ops.l2_step_(start, grad, x, step_size=0.3, eps=0.4, bounds=None, box=box)
    torch.testing.assert_close(got, expected.float(), rtol=0, atol=ATOL)
    held = planes_of(box, x)[3]
    assert torch.equal(got[held], x[held])


@pytest.fixture
def short_rows_of_l2(monkeypatch):
    pytest.importorskip("triton", reason="needs triton, which is installed on Linux only")
    from fastadv.kernels.steps import l2 as kernels

    monkeypatch.setattr(kernels, "BOX_ROW_LIMIT", 64)
    monkeypatch.setattr(kernels, "CHUNK", 128)


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
def test_boxes_lie_in_the_order_of_the_memory(channels_last, implementation, device):
    x_adv, grad, x = images(device, 2, 3, 4, 5)
    lower, upper, unit = drawn(x, units=True, ball=0.05)
    expected = torch.clamp(x_adv + 0.01 * unit * grad.sign(), lower, upper)
    if channels_last:
        x_adv = x_adv.contiguous(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
    box = packed(lower, upper, unit, x)
    got = ops.linf_step_(x_adv, grad, x, step_size=0.01, eps=9.0, box=box)
    assert torch.equal(got, expected)
    start = ops.random_start(x, eps=0.05, seed=1, box=box)
    plain = ops.random_start(x, eps=1.0, seed=1, bounds=None).sub(x)  # rounded once more
    torch.testing.assert_close(
        start, torch.clamp(x + plain * unit * 0.05, lower, upper), rtol=0, atol=1e-7
    )


@pytest.mark.parametrize("step", [ops.linf_step_, ops.l2_step_])
def test_the_model_input_is_the_normalised_step(step, either_backend, device):
    """With momentum and without, in the other layout than x_adv."""
    mean = torch.tensor([0.5, 0.4, 0.3], device=device)
    std = torch.tensor([0.2, 0.3, 0.25], device=device)
    x_adv, grad, x = images(device, 2, 3, 5, 6)
    box = box_of(x, units=True, ball=0.05)
    like = grad.to(memory_format=torch.channels_last)
    for more in ({}, dict(momentum=torch.full_like(x, 0.1), decay=0.5)):
        plain = {k: v.clone() if k == "momentum" else v for k, v in more.items()}
        expected = step(
            x_adv.clone(), grad / std.view(3, 1, 1), x, step_size=0.03, eps=1.0, box=box, **plain
        )
        model_input, moved = torch.full_like(like, float("nan")), x_adv.clone()
        step(
            moved,
            like,
            x,
            step_size=0.03,
            eps=1.0,
            box=box,
            model_input=model_input,
            mean=mean,
            std=std,
            **more,
        )
        torch.testing.assert_close(moved, expected, rtol=0, atol=ATOL)
        assert torch.equal(model_input, (moved - mean.view(3, 1, 1)) / std.view(3, 1, 1))


@pytest.mark.parametrize("step", [ops.linf_step_, ops.l2_step_])
def test_one_launch(step, count_launches, device):
    x_adv, grad, x = images(device, 2, 20)
    with use_backend("triton"), count_launches() as launches:
        step(x_adv, grad, x, step_size=0.1, eps=0.5, box=box_of(x, units=True))
    assert len(launches) == 1


def test_a_box_that_does_not_fit(device):
    x_adv, grad, x = images(device, 2, 9)
    for box in (torch.zeros(2, 4, 9), torch.zeros(2, 2, 8), torch.zeros(2, 2, 9).double()):
        with pytest.raises(
            ValueError, match=r"box must be \(2, 2, 9\) or \(2, 3, 9\) torch.float32"
        ):
            ops.linf_step_(x_adv, grad, x, step_size=0.1, eps=0.1, box=box.to(device))
    with pytest.raises(ValueError, match="box is not taken with kind 'l1_gaussian'"):
        ops.random_start(x, eps=0.1, seed=0, kind="l1_gaussian", box=torch.zeros(2, 2, 9))
