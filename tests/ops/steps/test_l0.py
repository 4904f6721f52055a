"""The L0 step: exact in float64, few entries changed, all others x bit for bit."""

import itertools

import pytest
import torch
from l0_exact import changed, exact_step
from step_problems import images

from fastadv.kernels import slots as columns
from fastadv.ops.steps import l0

SHAPES = [(2, 1), (2, 17), (2, 1023), (2, 3, 9, 7), (2, 1, 5, 5), (1, 5000), (3, 2, 2, 3, 4)]
LONG = pytest.mark.parametrize("long", [False, True])


@pytest.fixture
def short_rows(monkeypatch):
    """Rows above 64 elements take the kernel for long rows, in chunks of 32."""
    pytest.importorskip("triton", reason="needs triton, which is installed on Linux only")
    from fastadv.kernels.steps import l0 as kernels

    monkeypatch.setattr(kernels, "ROW_LIMIT", 64)
    monkeypatch.setattr(kernels, "LONG_ROW", (32, 1))


def _maybe_long(long, implementation, request):
    if long and implementation != "triton":
        pytest.skip("only the kernel knows long rows")
    if long:
        request.getfixturevalue("short_rows")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("pixels", [False, True])
def test_step_is_the_exact_one(shape, pixels, implementation, device):
    if pixels and len(shape) < 3:
        pytest.skip("has no pixels")
    x_adv, grad, x = images(device, *shape)
    for share in (0.02, 0.3, 1.0):
        size = x[0].numel() // (shape[1] if pixels else 1)
        eps = max(1, int(share * size))
        step = 0.4 * x[0].numel()
        got = l0.l0_step(x_adv, grad, x, step_size=step, eps=eps, pixels=pixels)
        exact = exact_step(x_adv, grad, x, step, eps, pixels=pixels)
        assert (got.double() - exact).abs().max() < 3e-7
        assert torch.equal(changed(got, x, pixels=pixels), changed(exact.float(), x, pixels=pixels))


@pytest.mark.parametrize("pixels", [False, True])
@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-1.0, 2.0), (0.3, 0.6), None], ids=str)
def test_long_rows_and_other_bounds(bounds, pixels, short_rows, implementation, device):
    x_adv, grad, x = images(device, 2, 3, 11, 7)
    x = x if bounds is None else x.clamp(*bounds)
    got = l0.l0_step(x_adv, grad, x, step_size=90.0, eps=13, bounds=bounds, pixels=pixels)
    exact = exact_step(x_adv, grad, x, 90.0, 13, pixels=pixels, bounds=bounds)
    assert (got.double() - exact).abs().max() < 1e-6
    assert (changed(got, x, pixels=pixels) <= 13).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
@LONG
def test_other_dtypes(dtype, long, implementation, request, device):
    _maybe_long(long, implementation, request)
    x_adv, grad, x = images(device, 2, 3, 8, 8, dtype=dtype)
    got = l0.l0_step(x_adv, grad, x, step_size=60.0, eps=20)
    exact = exact_step(x_adv, grad, x, 60.0, 20)
    assert got.dtype == dtype and (changed(got, x) <= 20).all()
    assert (got.double() - exact).abs().max() <= torch.finfo(dtype).eps


@pytest.mark.parametrize("pixels", [False, True])
@LONG
def test_the_nearest_point_of_all_subsets(pixels, long, implementation, request, device):
    _maybe_long(long, implementation, request)
    z, _, x = images(device, 40, 2, 3, 2, near=1.5, dtype=torch.float64)
    z = z + 0.8 * (z - x)  # some outside of the box
    got = l0.l0_step(z, torch.zeros_like(x), x, step_size=0.0, eps=2, pixels=pixels)
    best = torch.full((40,), torch.inf, dtype=torch.float64, device=device)
    size = 6 if pixels else 12
    for subset in itertools.combinations(range(size), 2):
        kept = torch.zeros(size, dtype=torch.bool, device=device)
        kept[list(subset)] = True
        kept = kept.view(1, 3, 2) if pixels else kept.view(2, 3, 2)
        point = torch.where(kept, z.clamp(0, 1), x)
        best = best.minimum((point - z).square().flatten(1).sum(1))
    assert torch.allclose((got - z).square().flatten(1).sum(1), best, rtol=1e-14)


@pytest.mark.parametrize("channels_last", [False, True])
@LONG
def test_of_equals_the_first_move_and_never_more_than_eps(
    channels_last, long, implementation, request, device
):
    _maybe_long(long, implementation, request)
    x = torch.full((2, 3, 6, 5), 0.5, device=device)
    grad = torch.ones_like(x)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    got = l0.l0_step(x, grad, x, step_size=9.0, eps=4)
    assert (got != x).flatten(1).nonzero()[:, 1].tolist() == [0, 1, 2, 3] * 2
    got = l0.l0_step(x, grad, x, step_size=9.0, eps=7, pixels=True)
    first = (torch.arange(30, device=device) < 7).view(1, 1, 6, 5)
    assert torch.equal(got != x, first.expand(2, 3, 6, 5))


@LONG
def test_what_has_not_changed_keeps_its_bits(long, implementation, request, device):
    _maybe_long(long, implementation, request)
    x_adv, grad, x = images(device, 3, 100)
    x[:, ::2] = -0.0
    x_adv[:, ::2], grad[:, ::2] = 0.0, -1e-30
    grad[1] = 0.0
    grad[2, 1::2] = float("nan")
    got = l0.l0_step(x_adv, grad, x, step_size=20.0, eps=60)
    assert changed(got, x).tolist() == [50, 50, 50]
    assert torch.equal(got[1:, 1::2], x_adv[1:, 1::2])  # no step, and room for all of them


@pytest.mark.parametrize("size", [1e-44, 1e-30, 1e30, 3e38, torch.inf], ids=str)
@LONG
def test_gradients_of_any_size_move_alike(size, long, implementation, request, device):
    _maybe_long(long, implementation, request)
    x_adv, _, x = images(device, 1, 200)
    sign = torch.ones(1, 200, device=device)
    sign[:, ::3] = -1.0
    got = l0.l0_step(x_adv, sign * size, x, step_size=100.0, eps=31)
    assert torch.equal(got, l0.l0_step(x_adv, sign, x, step_size=100.0, eps=31))


def test_rows_have_their_own_radii_steps_and_bits(implementation, device):
    x_adv, grad, x = images(device, 5, 3, 6, 7)
    eps = torch.tensor([1.0, 126.0, 7.0, 30.0, 7.0], device=device)
    step = torch.tensor([9.0, -20.0, 40.0, 0.0, 1e9], device=device)
    got = l0.l0_step(x_adv, grad, x, step_size=step, eps=eps)
    exact = exact_step(x_adv, grad, x, step, eps)
    assert (got.double() - exact).abs().max() < 1e-6
    for row in range(5):
        one = slice(row, row + 1)
        own = dict(step_size=float(step[row]), eps=float(eps[row]))
        assert torch.equal(l0.l0_step(x_adv[one], grad[one], x[one], **own)[0], got[row])


@pytest.mark.parametrize("pixels", [False, True])
@LONG
def test_slots_momentum_and_the_models_input(pixels, long, implementation, request, device):
    _maybe_long(long, implementation, request)
    x_adv, grad, x = images(device, 3, 3, 5, 6)
    slots = torch.zeros(3, columns.WIDTH, dtype=torch.int32, device=device)
    slots[:2, columns.ACTIVE] = 1
    mean, std = torch.tensor([0.1, 0.2, 0.3]).to(device), torch.tensor([0.5, 0.6, 0.7]).to(device)
    grad = grad.contiguous(memory_format=torch.channels_last)
    model_input = torch.zeros_like(grad)
    momentum = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(device)
    before = momentum.clone(), x_adv.clone()
    g = grad.double() / std.view(1, 3, 1, 1)
    m = 0.9 * momentum.double() + g / g.abs().mean((1, 2, 3), keepdim=True)
    exact = exact_step(x_adv, m, x, 50.0, 8, pixels=pixels)
    state = dict(slots=slots, momentum=momentum, decay=0.9, mean=mean, std=std)
    more = dict(model_input=model_input, step_size=50.0, eps=8, pixels=pixels)
    l0.l0_step_(x_adv, grad, x, **state, **more)
    assert (x_adv[:2].double() - exact[:2]).abs().max() < 1e-6
    assert (momentum[:2].double() - m[:2]).abs().max() < 1e-5
    assert torch.equal(x_adv[2], before[1][2]) and torch.equal(momentum[2], before[0][2])
    wanted = (x_adv - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    assert torch.allclose(model_input[:2], wanted[:2], rtol=1e-6, atol=1e-7)
    assert (model_input[2] == 0).all()


def test_strides_and_empty_batches(implementation, device):
    x_adv, grad, x = images(device, 4, 3, 6, 10)
    expected = l0.l0_step(x_adv, grad, x, step_size=50.0, eps=9)
    wide = [torch.stack([t, t], -1)[..., 0] for t in (x_adv, grad, x)]
    assert torch.equal(l0.l0_step(*wide, step_size=50.0, eps=9), expected)
    last = [t.contiguous(memory_format=torch.channels_last) for t in (x_adv, grad, x)]
    assert (l0.l0_step(*last, step_size=50.0, eps=9) - expected).abs().max() < 1e-6
    assert l0.l0_step(x_adv[:0], grad[:0], x[:0], step_size=50.0, eps=9).shape == (0, 3, 6, 10)
    with pytest.raises(ValueError, match="pixels=True needs images"):
        l0.l0_step(x[:, 0, 0], x[:, 0, 0], x[:, 0, 0], step_size=1.0, eps=1, pixels=True)


def _authors_projection(y, k, lower, upper):
    """project_L0_box of Croce and Hein's own code, in torch: images (B, H, W, C), y = z - x."""
    inside = (upper - y).minimum(y - lower).clamp(max=0)
    gain = y.square().sum(-1) - inside.square().sum(-1)
    least = gain.flatten(1).sort(1).values[:, -k]
    return y.clamp(lower, upper) * (gain >= least.view(-1, 1, 1)).unsqueeze(-1)


def test_steps_are_those_of_the_authors_code(implementation, device):
    x, grad, _ = images(device, 3, 3, 6, 6, dtype=torch.float64, seed=3)
    mine, theirs = x, x
    for turn in range(4):
        g = grad * torch.linspace(-1, 1, grad.numel(), device=device).view_as(grad).roll(turn, 0)
        mine = l0.l0_step(mine, g, x, step_size=40.0, eps=5, pixels=True)
        unit = g / (1e-10 + g.abs().sum((1, 2, 3), keepdim=True))
        last = (theirs + 40.0 * unit - x).permute(0, 2, 3, 1)
        clean = x.permute(0, 2, 3, 1)
        theirs = x + _authors_projection(last, 5, -clean, 1 - clean).permute(0, 3, 1, 2)
        assert (mine - theirs).abs().max() < 1e-9
        assert (changed(mine, x, pixels=True) == 5).all()
