"""The L2 step against float64, its backends against each other, and its promises."""

import math

import pytest
import torch

from fastadv.ops import backend
from fastadv.ops.steps import l2

BOUNDS = (0.0, 1.0)


def images(device, *shape, dtype=torch.float32, seed=0, near=0.05):
    """(x_adv, grad, x): x in [0, 1], x_adv near it, a gradient of unit variance."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(shape, generator=generator, dtype=torch.float64)
    x_adv = (x + near * torch.randn(shape, generator=generator, dtype=torch.float64)).clamp(0, 1)
    grad = torch.randn(shape, generator=generator, dtype=torch.float64)
    return tuple(t.to(device, dtype) for t in (x_adv, grad, x))


def column(value, x):
    value = torch.as_tensor(value, dtype=torch.float64, device=x.device)
    return value.expand(len(x)).view(-1, *[1] * (x.ndim - 1))


def norm(t):
    return t.flatten(1).norm(dim=1).view(-1, *[1] * (t.ndim - 1))


def exact_step(x_adv, grad, x, step_size, eps, bounds=BOUNDS, guard=0.0):
    """The closed form in float64; gradients must not be zero."""
    x_adv, grad, x = x_adv.double(), grad.double(), x.double()
    u = x_adv - x + column(step_size, x) * grad / (norm(grad) + guard)
    moved = x + u * (column(eps, x) / norm(u)).clamp(max=1)
    return moved if bounds is None else moved.clamp(*bounds)


def error(got, exact):
    assert got.isfinite().all()
    return float((got.double() - exact).abs().max())


def assert_as_good_as_eager(got, eager, exact):
    """Contract C1: at most twice the eager error, and one unit in the last place of the dtype."""
    ulp = torch.finfo(got.dtype).eps * float(exact.abs().max())
    assert error(got, exact) <= 2 * error(eager, exact) + ulp


def assert_within(x_adv, x, eps, largest=1.0):
    """Contract C3, in float64."""
    roundoff = {
        torch.float64: 2**-53,
        torch.float32: 2**-24,
        torch.float16: 2**-11,
        torch.bfloat16: 2**-8,
    }[x.dtype]
    distance = (x_adv.double() - x.double()).flatten(1).norm(dim=1)
    radius = torch.as_tensor(eps, dtype=torch.float64, device=x.device)
    assert (distance <= radius * (1 + 1e-6) + roundoff * math.sqrt(x[0].numel()) * largest).all()


@pytest.fixture
def short_rows(monkeypatch):
    """Rows above 64 elements take the kernels for long rows, in chunks of 128."""
    pytest.importorskip("triton", reason="needs triton, which is installed on Linux only")
    from fastadv.kernels.steps import l2 as kernels

    monkeypatch.setattr(kernels, "ROW_LIMIT", 64)
    monkeypatch.setattr(kernels, "CHUNK", 128)


class Launches:
    """Stands for a kernel and counts its launches."""

    def __init__(self, kernel, counts):
        self.kernel, self.counts = kernel, counts
        self.arg_names = kernel.arg_names

    def __getitem__(self, grid):
        self.counts.append(grid)
        return self.kernel[grid]


@pytest.fixture
def launches(monkeypatch):
    pytest.importorskip("triton", reason="needs triton, which is installed on Linux only")
    from fastadv.kernels.steps import l2 as kernels

    counts = []
    for name in [n for n in vars(kernels) if n.startswith("l2_") and n.endswith("_kernel")]:
        monkeypatch.setattr(kernels, name, Launches(getattr(kernels, name), counts))
    return counts


SHAPES = [(2, 1), (2, 15), (2, 17), (2, 1023), (2, 3, 32, 32), (2, 5000), (3, 2, 2, 3, 4)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("eps", [0.2, 100.0], ids=["outside", "inside"])
def test_step_is_the_closed_form(shape, eps, either_backend, device):
    x_adv, grad, x = images(device, *shape)
    exact = exact_step(x_adv, grad, x, 0.3, eps)
    eager = l2.l2_step_reference(x_adv, grad, x, step_size=0.3, eps=eps)
    got = l2.l2_step(x_adv, grad, x, step_size=0.3, eps=eps)
    assert_as_good_as_eager(got, eager, exact)
    assert error(eager, exact) < 2e-7  # 2 ulp of values in [0.5, 1)
    assert_within(got, x, eps)


# 16500: 129 chunks, more than are read at once
@pytest.mark.parametrize(("batch", "size"), [(2, 65), (2, 128), (2, 129), (2, 1000), (1, 16500)])
def test_long_rows_are_the_closed_form(batch, size, short_rows, device):
    x_adv, grad, x = images(device, batch, size)
    exact = exact_step(x_adv, grad, x, 0.3, 0.2)
    eager = l2.l2_step_reference(x_adv, grad, x, step_size=0.3, eps=0.2)
    with backend.use_backend("triton"):
        got = l2.l2_step(x_adv, grad, x, step_size=0.3, eps=0.2)
    assert_as_good_as_eager(got, eager, exact)
    assert_within(got, x, 0.2)


def test_long_rows_at_the_real_limit(device):
    x_adv, grad, x = images(device, 1, 3, 60, 60)
    with backend.use_backend("triton"):
        got = l2.l2_step(x_adv, grad, x, step_size=0.3, eps=0.5)
    eager = l2.l2_step_reference(x_adv, grad, x, step_size=0.3, eps=0.5)
    assert_as_good_as_eager(got, eager, exact_step(x_adv, grad, x, 0.3, 0.5))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("long", [False, True])
def test_other_dtypes_are_the_closed_form(dtype, long, either_backend, request, device):
    if long:
        request.getfixturevalue("short_rows")
    x_adv, grad, x = images(device, 2, 3, 8, 8, dtype=dtype)
    got = l2.l2_step(x_adv, grad, x, step_size=0.3, eps=0.2)
    eager = l2.l2_step_reference(x_adv, grad, x, step_size=0.3, eps=0.2)
    assert got.dtype == dtype
    assert_as_good_as_eager(got, eager, exact_step(x_adv, grad, x, 0.3, 0.2))
    assert_within(got, x, 0.2)


@pytest.mark.parametrize("long", [False, True])
def test_step_size_and_eps_may_be_per_sample(long, either_backend, request, device):
    if long:
        request.getfixturevalue("short_rows")
    x_adv, grad, x = images(device, 3, 100)
    step = torch.tensor([0.1, -0.2, 5.0], device=device)
    eps = torch.tensor([0.05, 10.0, 0.7], device=device)
    got = l2.l2_step(x_adv, grad, x, step_size=step, eps=eps)
    exact = exact_step(x_adv, grad, x, step, eps)
    assert error(got, exact) < 2e-7
    assert_within(got, x, eps)


@pytest.mark.parametrize("bounds", [(-1.0, 2.0), (0.3, 0.6), None], ids=str)
def test_bounds(bounds, either_backend, device):
    x_adv, grad, x = images(device, 2, 100)
    got = l2.l2_step(x_adv, grad, x, step_size=4.0, eps=3.0, bounds=bounds)
    assert error(got, exact_step(x_adv, grad, x, 4.0, 3.0, bounds)) < 5e-7


def test_guard_is_added_to_the_norm(either_backend, device):
    x_adv, grad, x = images(device, 2, 100)
    grad *= 1e-10
    got = l2.l2_step(x_adv, grad, x, step_size=0.3, eps=9.0, guard=1e-9)
    exact = exact_step(x_adv, grad, x, 0.3, 9.0, guard=1e-9)
    assert error(got, exact) < 2e-7
    assert error(exact_step(x_adv, grad, x, 0.3, 9.0), exact) > 1e-3  # the guard shows


@pytest.mark.parametrize("size", [1e-44, 1e-40, 1e-30, 1e-15, 1e30, 3e38], ids=str)
@pytest.mark.parametrize("long", [False, True])
def test_gradients_of_any_size_give_a_full_step(size, long, either_backend, request, device):
    if long:
        request.getfixturevalue("short_rows")
    _, grad, x = images(device, 2, 300)
    x = 0.5 + 0.0 * x
    grad = (grad.double() / grad.double().abs().max() * size).float()
    got = l2.l2_step(x, grad, x, step_size=0.3, eps=9.0)
    assert error(got, exact_step(x, grad, x, 0.3, 9.0)) < 2e-7
    assert torch.allclose((got - x).norm(dim=1), torch.tensor(0.3, device=device), rtol=1e-4)


def test_chunks_of_very_different_size_add_up(short_rows, device):
    x_adv, grad, x = images(device, 2, 600)
    grad[0, :256] *= 1e-30
    grad[0, 256:384] = 0.0
    grad[1, :128] *= 1e30
    with backend.use_backend("triton"):
        got = l2.l2_step(x_adv, grad, x, step_size=0.3, eps=0.2)
    assert error(got, exact_step(x_adv, grad, x, 0.3, 0.2)) < 2e-7


@pytest.mark.parametrize("long", [False, True])
@pytest.mark.parametrize("guard", [0.0, 1e-10])
def test_zero_gradient_leaves_the_input_unchanged(long, guard, either_backend, request, device):
    if long:
        request.getfixturevalue("short_rows")
    x_adv, grad, x = images(device, 2, 100, near=0.01)
    grad[0] = 0.0
    got = l2.l2_step(x_adv, grad, x, step_size=0.3, eps=0.5, guard=guard)
    assert torch.equal(got[0], x_adv[0])
    assert error(got[1:], exact_step(x_adv, grad, x, 0.3, 0.5, guard=guard)[1:]) < 2e-7


def test_zero_gradient_still_projects_and_clamps(either_backend, device):
    x_adv, grad, x = images(device, 2, 100, near=1.0)
    got = l2.l2_step(x_adv, torch.zeros_like(grad), x, step_size=0.3, eps=0.5)
    assert error(got, exact_step(x_adv, torch.ones_like(x), x, 0.0, 0.5)) < 2e-7


@pytest.mark.parametrize("long", [False, True])
def test_nan_gradients_count_as_zero(long, either_backend, request, device):
    if long:
        request.getfixturevalue("short_rows")
    x_adv, grad, x = images(device, 2, 100)
    grad[0, ::3] = float("nan")
    got = l2.l2_step(x_adv, grad, x, step_size=0.3, eps=0.2)
    assert error(got, exact_step(x_adv, grad.nan_to_num(0.0), x, 0.3, 0.2)) < 2e-7


@pytest.mark.parametrize("long", [False, True])
def test_an_infinite_gradient_takes_no_step(long, either_backend, request, device):
    if long:
        request.getfixturevalue("short_rows")
    x_adv, grad, x = images(device, 2, 200, near=0.01)
    grad[0, 3] = float("-inf")
    got = l2.l2_step(x_adv, grad, x, step_size=0.3, eps=0.5)
    assert torch.equal(got[0], x_adv[0])
    assert not torch.equal(got[1], x_adv[1])


def test_eps_zero_gives_the_clean_input(either_backend, device):
    x_adv, grad, x = images(device, 2, 100)
    assert torch.equal(l2.l2_step(x_adv, grad, x, step_size=0.3, eps=0.0), x)


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
        request.getfixturevalue("short_rows")
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
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_momentum_is_mifgsm_along_the_l2_direction(long, dtype, either_backend, request, device):
    if long:
        request.getfixturevalue("short_rows")
    x_adv, grad, x = images(device, 2, 300, dtype=dtype)
    momentum = torch.randn(2, 300, generator=torch.Generator().manual_seed(1)).to(device)
    unit = grad.double() / grad.double().abs().mean(1, keepdim=True)
    m = 0.9 * momentum.double() + unit
    exact = exact_step(x_adv, m, x, 0.3, 0.2)
    l2.l2_step_(x_adv, grad, x, step_size=0.3, eps=0.2, momentum=momentum, decay=0.9)
    assert error(momentum, m) < 1e-6
    assert error(x_adv, exact) < (2e-7 if dtype == torch.float32 else 1e-15)


def test_zero_and_infinite_gradients_add_no_momentum(either_backend, device):
    x_adv, grad, x = images(device, 2, 100)
    grad[0], grad[1, 5] = 0.0, float("inf")
    momentum = torch.ones_like(x)
    l2.l2_step_(x_adv, grad, x, step_size=0.3, eps=0.2, momentum=momentum, decay=0.5)
    assert torch.equal(momentum, torch.full_like(x, 0.5))


@pytest.mark.parametrize("long", [False, True])
@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_model_input_is_the_normalised_step(
    long, cross, channels_last, either_backend, request, device
):
    if long:
        request.getfixturevalue("short_rows")
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
        request.getfixturevalue("short_rows")
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
def test_launches(size, momentum, expected, short_rows, launches, device):
    x_adv, grad, x = images(device, 2, size)
    m = torch.zeros_like(x) if momentum else None
    with backend.use_backend("triton"):
        l2.l2_step_(x_adv, grad, x, step_size=0.3, eps=0.2, momentum=m)
    assert len(launches) == expected


def test_the_workspace_is_written_before_it_is_read(short_rows, monkeypatch, device):
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
    torch.library.opcheck(torch.ops.fastadv.l2_step_.default, (*arguments, 0.0))
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
