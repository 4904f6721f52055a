"""The L1 projection and step against float64, their backends against each other, their promises."""

import itertools

import numpy as np
import pytest
import torch

from fastadv.ops import backend
from fastadv.ops.steps import l1, l1_projection

BOUNDS = (0.0, 1.0)


def images(device, *shape, dtype=torch.float32, seed=0, near=0.1):
    """(x_adv, grad, x): x in [0, 1], x_adv near it, a gradient of unit variance."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(shape, generator=generator, dtype=torch.float64)
    x_adv = (x + near * torch.randn(shape, generator=generator, dtype=torch.float64)).clamp(0, 1)
    grad = torch.randn(shape, generator=generator, dtype=torch.float64)
    return tuple(t.to(device, dtype) for t in (x_adv, grad, x))


def projected_row(u, room, eps):
    """Sorted kinks, cumulative slopes, float64: |z| of one row, by walking the kinks downwards."""
    if np.minimum(u, room).sum() <= eps:
        return np.minimum(u, room)
    kinks = np.concatenate([u, u - room])
    slopes = np.concatenate([np.ones_like(u), -np.ones_like(u)])
    order = np.argsort(-kinks, kind="stable")
    mass, slope, at = 0.0, 0.0, kinks[order[0]]
    for kink, change in zip(kinks[order], slopes[order], strict=True):
        if slope > 0 and mass + slope * (at - kink) >= eps:
            break
        mass, at, slope = mass + slope * (at - kink), kink, slope + change
    return np.clip(u - (at - (eps - mass) / slope), 0.0, room)


def exact_projection(x_adv, x, eps, bounds=BOUNDS):
    """The nearest point in ball and box, row by row, in numpy float64."""
    lo, hi = bounds or (-np.inf, np.inf)
    rows = x.detach().cpu().double().flatten(1).numpy()
    u = x_adv.detach().cpu().double().flatten(1).numpy() - rows
    eps = np.broadcast_to(np.asarray(torch.as_tensor(eps).cpu(), dtype=np.float64), len(rows))
    out = np.empty_like(rows)
    for i, (row, move) in enumerate(zip(rows, u, strict=True)):
        room = np.where(move >= 0, np.minimum(hi - row, 1e9), np.minimum(row - lo, 1e9))
        out[i] = row + np.sign(move) * projected_row(np.abs(move), room, eps[i])
    return torch.from_numpy(out).view(x.shape).to(x.device)


def exact_step(x_adv, grad, x, step_size, eps, sparsity, bounds=BOUNDS):
    """The step in float64; ties are all kept, zeros never."""
    rows = grad.double().flatten(1)
    size = rows.shape[1]
    values = {"step": step_size, "share": sparsity}
    value = {k: torch.as_tensor(v).cpu().float().expand(len(rows)) for k, v in values.items()}
    move = torch.zeros_like(rows)
    for i, row in enumerate(rows):
        dropped = int(min(max(np.floor((1 - value["share"][i].numpy()) * size), 0), size - 1))
        least = row.abs().sort().values[dropped]
        kept = (row.abs() >= least) & (row != 0)
        step = torch.as_tensor(step_size, dtype=torch.float64).cpu().expand(len(rows))[i]
        move[i] = row.sign() * kept * (float(step) / max(int(kept.sum()), 1))
    return exact_projection(x_adv.double() + move.view(x.shape), x, eps, bounds)


def error(got, exact):
    assert got.isfinite().all()
    return float((got.double() - exact).abs().max())


def assert_as_good_as_eager(got, eager, exact):
    """Contract C1: at most twice the eager error, and one unit in the last place of the dtype."""
    ulp = torch.finfo(got.dtype).eps * float(exact.abs().max())
    assert error(got, exact) <= 2 * error(eager, exact) + ulp


def assert_within(x_adv, x, eps, bounds=BOUNDS):
    """Contract C3, in float64; without bounds the largest value stands for max(|lo|, |hi|)."""
    roundoff = {
        torch.float64: 2**-53,
        torch.float32: 2**-24,
        torch.float16: 2**-11,
        torch.bfloat16: 2**-8,
    }[x.dtype]
    largest = max(map(abs, bounds)) if bounds else float(x_adv.abs().max())
    distance = (x_adv.double() - x.double()).abs().flatten(1).sum(1)
    radius = torch.as_tensor(eps, dtype=torch.float64, device=x.device)
    assert (distance <= radius * (1 + 1e-6) + roundoff * x[0].numel() * largest).all()
    if bounds:
        assert ((x_adv >= bounds[0]) & (x_adv <= bounds[1])).all()


@pytest.fixture
def short_rows(monkeypatch):
    """Rows above 64 elements take the kernel for long rows, in chunks of 128."""
    pytest.importorskip("triton", reason="needs triton, which is installed on Linux only")
    from fastadv.kernels.steps import l1 as kernels

    monkeypatch.setattr(kernels, "ROW_LIMIT", 64)
    monkeypatch.setattr(kernels, "LONG_ROW", (128, 4))


SHAPES = [(2, 1), (2, 15), (2, 17), (2, 1023), (2, 3, 32, 32), (1, 5000), (3, 2, 2, 3, 4)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("share", [0.002, 0.03, 10.0])
def test_projection_is_the_sorted_one(shape, share, either_backend, device):
    x_adv, _, x = images(device, *shape)
    eps = share * x[0].numel()
    exact = exact_projection(x_adv, x, eps)
    eager = l1_projection.project_l1_reference(x_adv, x, eps=eps)
    got = l1_projection.project_l1(x_adv, x, eps=eps)
    assert_as_good_as_eager(got, eager, exact)
    assert error(eager, exact) < 1e-7  # 1 ulp of values in [0.5, 1)
    assert_within(got, x, eps)


@pytest.mark.parametrize("size", [65, 129, 1000])
@pytest.mark.parametrize("share", [0.003, 0.03])
def test_long_projection_is_the_sorted_one(size, share, short_rows, device):
    x_adv, _, x = images(device, 2, size)
    with backend.use_backend("triton"):
        got = l1_projection.project_l1(x_adv, x, eps=share * size)
    assert error(got, exact_projection(x_adv, x, share * size)) < 1e-7
    assert_within(got, x, share * size)


def test_projection_is_nearest_of_all_feasible_points_on_a_grid(either_backend, device):
    x = torch.tensor([[0.2, 0.9, 0.5]], device=device, dtype=torch.float64)
    x_adv = torch.tensor([[1.5, 1.4, -0.1]], device=device, dtype=torch.float64)
    got = l1_projection.project_l1(x_adv, x, eps=0.6)
    axis = torch.linspace(0, 1, 101, dtype=torch.float64)
    grid = torch.tensor(list(itertools.product(axis.tolist(), repeat=3)), device=device)
    feasible = grid[(grid - x).abs().sum(1) <= 0.6 + 1e-9]
    nearest = (feasible - x_adv).norm(dim=1).min()
    assert float((got - x_adv).norm()) <= float(nearest) + 1e-9


def hard_rows(kind, size):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1, size, generator=generator)
    noise = torch.randn(1, size, generator=generator)
    if kind == "normal":
        return x + noise, x
    if kind == "equal":
        return torch.full_like(x, 0.9), torch.full_like(x, 0.5)
    if kind == "binary":
        return torch.rand(1, size, generator=generator), x.round()
    if kind == "cauchy":
        return x + noise / torch.randn(1, size, generator=generator), x
    if kind == "geometric":
        return torch.logspace(-30, 0, size).view(1, -1), torch.zeros(1, size)
    return torch.where(torch.rand(1, size, generator=generator) < 0.01, 1 - x, x), x


@pytest.mark.parametrize("bounds", [BOUNDS, None], ids=str)
@pytest.mark.parametrize("eps", [0.0, 1e-6, 0.5, 12.0, 400.0])
@pytest.mark.parametrize("kind", ["normal", "equal", "binary", "cauchy", "geometric", "sparse"])
def test_projection_of_hard_rows(kind, eps, bounds, either_backend, device):
    x_adv, x = (t.to(device) for t in hard_rows(kind, 900))
    got = l1_projection.project_l1(x_adv, x, eps=eps, bounds=bounds)
    exact = exact_projection(x_adv, x, eps, bounds)
    # x_adv - x is rounded once, as is the result; the sum over the row is right to 4 roundings
    largest = max(1.0, float((x_adv - x).abs().max()))
    assert error(got, exact) <= 2**-24 * (2 * largest + 4 * eps)
    assert_within(got, x, eps, bounds)


def test_a_row_far_outside_keeps_its_budget(either_backend, device):
    # the threshold is near 100, where one bit is 8e-6: times 3072 elements 0.02, were it not for
    # the correction below its resolution
    x = torch.full((1, 3072), 0.5, device=device)
    x_adv = x + torch.linspace(100.0, 100.001, 3072, device=device)
    got = l1_projection.project_l1(x_adv, x, eps=2.0)
    assert float((got.double() - x.double()).abs().sum()) == pytest.approx(2.0, abs=2e-4)


def test_points_inside_are_returned_as_they_are(either_backend, device):
    x_adv, _, x = images(device, 2, 500)
    assert torch.equal(l1_projection.project_l1(x_adv, x, eps=500.0), x_adv)
    assert torch.equal(l1_projection.project_l1(x_adv, x, eps=0.0), x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("long", [False, True])
def test_other_dtypes(dtype, long, either_backend, request, device):
    if long:
        request.getfixturevalue("short_rows")
    x_adv, grad, x = images(device, 2, 3, 8, 8, dtype=dtype)
    got = l1_projection.project_l1(x_adv, x, eps=3.0)
    eager = l1_projection.project_l1_reference(x_adv, x, eps=3.0)
    assert got.dtype == dtype
    assert_as_good_as_eager(got, eager, exact_projection(x_adv, x, 3.0))
    step = dict(step_size=2.0, eps=3.0, sparsity=0.25)
    got = l1.l1_step(x_adv, grad, x, **step)
    eager = l1.l1_step_reference(x_adv, grad, x, **step)
    assert_as_good_as_eager(got, eager, exact_step(x_adv, grad, x, 2.0, 3.0, 0.25))
    assert_within(got, x, 3.0)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("sparsity", [0.0, 0.05, 0.2, 1.0])
def test_step_is_the_sparse_one(shape, sparsity, either_backend, device):
    x_adv, grad, x = images(device, *shape)
    eps = 0.03 * x[0].numel()
    exact = exact_step(x_adv, grad, x, 2.0, eps, sparsity)
    step = dict(step_size=2.0, eps=eps, sparsity=sparsity)
    got = l1.l1_step(x_adv, grad, x, **step)
    assert_as_good_as_eager(got, l1.l1_step_reference(x_adv, grad, x, **step), exact)
    assert_within(got, x, eps)


@pytest.mark.parametrize("size", [65, 129, 1000])
@pytest.mark.parametrize("sparsity", [0.0, 0.05, 0.2, 1.0])
def test_long_step_is_the_sparse_one(size, sparsity, short_rows, device):
    x_adv, grad, x = images(device, 2, size)
    eps = 0.03 * size
    with backend.use_backend("triton"):
        got = l1.l1_step(x_adv, grad, x, step_size=2.0, eps=eps, sparsity=sparsity)
    assert error(got, exact_step(x_adv, grad, x, 2.0, eps, sparsity)) < 2e-7
    assert_within(got, x, eps)


@pytest.mark.parametrize("long", [False, True])
def test_step_parameters_may_be_per_sample(long, either_backend, request, device):
    if long:
        request.getfixturevalue("short_rows")
    x_adv, grad, x = images(device, 3, 100)
    step = torch.tensor([1.0, -2.0, 30.0], device=device)
    eps = torch.tensor([1.0, 50.0, 2.0], device=device)
    sparsity = torch.tensor([0.05, 0.5, 1.0], device=device)
    got = l1.l1_step(x_adv, grad, x, step_size=step, eps=eps, sparsity=sparsity)
    assert error(got, exact_step(x_adv, grad, x, step, eps, sparsity)) < 2e-7
    assert_within(got, x, eps)


def test_as_many_elements_move_as_in_autoattack(either_backend, device):
    for size, share in itertools.product((1, 7, 100, 784), (0.01, 0.2, 0.3, 0.7, 0.999)):
        _, grad, x = images(device, 1, size)
        x = 0.5 + 0 * x
        moved = l1.l1_step(x, grad, x, step_size=0.4, eps=9.0, sparsity=share) != x
        topk = torch.full((1,), share)
        dropped = torch.clamp((1.0 - topk) * size, min=0, max=size - 1).long()
        assert int(moved.sum()) == size - int(dropped)


@pytest.mark.parametrize("long", [False, True])
def test_ties_are_all_kept_and_zeros_never(long, either_backend, request, device):
    if long:
        request.getfixturevalue("short_rows")
    x = torch.full((3, 100), 0.5, device=device)
    grad = torch.zeros(3, 100, device=device)
    grad[0, :30] = 2.0  # more ties than the 20 asked for
    grad[1, :5] = -1.0  # fewer elements above zero than asked for
    grad[2] = torch.arange(100.0, 0.0, -1.0)
    got = l1.l1_step(x, grad, x, step_size=0.6, eps=9.0, sparsity=0.2)
    for row, (sign, count) in enumerate([(1, 30), (-1, 5), (1, 20)]):
        expected = torch.full((count,), 0.5 + sign * 0.6 / count, device=device)
        assert torch.allclose(got[row, :count], expected, rtol=0, atol=1e-7)
        assert torch.equal(got[row, count:], x[row, count:])


@pytest.mark.parametrize("size", [1e-44, 1e-30, 1e30, 3e38], ids=str)
@pytest.mark.parametrize("long", [False, True])
def test_gradients_of_any_size_move_alike(size, long, either_backend, request, device):
    if long:
        request.getfixturevalue("short_rows")
    x_adv, _, x = images(device, 1, 200)
    sign = torch.ones(1, 200, device=device)
    sign[:, ::3] = -1.0
    sign[:, ::7] = 0.0
    got = l1.l1_step(x_adv, sign * size, x, step_size=2.0, eps=4.0, sparsity=0.2)
    expected = l1.l1_step(x_adv, sign, x, step_size=2.0, eps=4.0, sparsity=0.2)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("long", [False, True])
def test_zero_gradient_leaves_the_input_unchanged(long, either_backend, request, device):
    if long:
        request.getfixturevalue("short_rows")
    x_adv, grad, x = images(device, 2, 100)
    grad[0] = 0.0
    got = l1.l1_step(x_adv, grad, x, step_size=2.0, eps=50.0)
    assert torch.equal(got[0], x_adv[0])
    assert not torch.equal(got[1], x_adv[1])
    got = l1.l1_step(x_adv, grad, x, step_size=2.0, eps=1.0)
    assert torch.equal(got[0], l1_projection.project_l1(x_adv, x, eps=1.0)[0])


@pytest.mark.parametrize("long", [False, True])
def test_nan_gradients_count_as_zero_and_infinite_ones_as_large(
    long, either_backend, request, device
):
    if long:
        request.getfixturevalue("short_rows")
    x_adv, grad, x = images(device, 2, 100)
    grad[0, ::3], grad[1, 5] = float("nan"), float("-inf")
    got = l1.l1_step(x_adv, grad, x, step_size=2.0, eps=4.0, sparsity=0.1)
    grad = grad.nan_to_num(0.0, neginf=-1e3)
    assert error(got, exact_step(x_adv, grad, x, 2.0, 4.0, 0.1)) < 1e-7


@pytest.mark.parametrize("bounds", [(-1.0, 2.0), (0.3, 0.6), None], ids=str)
def test_bounds(bounds, either_backend, device):
    x_adv, grad, x = images(device, 2, 100)
    if bounds is not None:
        x = x.clamp(*bounds)
    got = l1.l1_step(x_adv, grad, x, step_size=20.0, eps=10.0, bounds=bounds)
    assert error(got, exact_step(x_adv, grad, x, 20.0, 10.0, 0.2, bounds)) < 5e-7
    assert_within(got, x, 10.0, bounds)


def test_a_clean_input_outside_bounds_is_clamped(either_backend, device):
    x_adv, grad, x = images(device, 2, 100)
    x = x * 2 - 0.5
    got = l1.l1_step(x_adv, grad, x, step_size=2.0, eps=10.0)
    assert ((got >= 0) & (got <= 1)).all()


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
        request.getfixturevalue("short_rows")
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
def test_momentum_is_mifgsm_along_its_largest_elements(long, either_backend, request, device):
    if long:
        request.getfixturevalue("short_rows")
    x_adv, grad, x = images(device, 2, 300)
    momentum = torch.randn(2, 300, generator=torch.Generator().manual_seed(1)).to(device)
    unit = grad.double() / grad.double().abs().mean(1, keepdim=True)
    m = 0.9 * momentum.double() + unit
    exact = exact_step(x_adv, m, x, 2.0, 9.0, 0.2)
    l1.l1_step_(x_adv, grad, x, step_size=2.0, eps=9.0, momentum=momentum, decay=0.9)
    assert error(momentum, m) < 1e-6
    assert error(x_adv, exact) < 2e-7


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
        request.getfixturevalue("short_rows")
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
def test_one_launch_writes_every_element(size, short_rows, monkeypatch, device):
    from fastadv.kernels.steps import l1 as kernels

    class Launches:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            counts.append(grid)
            return self.kernel[grid]

    counts = []
    for name in ("l1_kernel", "l1_long_kernel"):
        monkeypatch.setattr(kernels, name, Launches(getattr(kernels, name)))
    x_adv, grad, x = images(device, 2, size)
    poison = torch.full_like(x, float("nan"))
    monkeypatch.setattr(torch, "empty_like", lambda like: poison)
    with backend.use_backend("triton"):
        assert l1_projection.project_l1(x_adv, x, eps=0.5).isfinite().all()
        assert len(counts) == 1
        l1.l1_step_(x_adv, grad, x, step_size=2.0, eps=0.5, momentum=torch.zeros_like(x))
        assert len(counts) == 2


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
