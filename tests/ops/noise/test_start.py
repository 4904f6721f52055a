"""Random starts: their distributions, and the same point from any batch, layout and backend."""

import math

import pytest
import torch
from scipy import stats

from fastadv.kernels.noise import streams
from fastadv.ops import backend, project_l1_reference
from fastadv.ops.noise import philox
from fastadv.ops.noise.start import KINDS, random_start, random_start_reference

LINF = ("linf_uniform", "linf_gaussian")
ROUND = 2.0**-24  # half an ULP of 1 in fp32
DEFAULTS = dict(eps=0.25, seed=-77, draw=3, scale=0.1)


def _images(shape, seed=0, dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator, dtype=torch.float64).to(device, dtype)


def _ids(batch, device):
    return torch.tensor([5, -7, 2**40 + 3, 0, 1, 2**31, 9, -(2**63)][:batch], device=device)


def _delta(kind, batch, size, eps=1.0, scale=None, seed=0):
    """Rows of start - x in float64, x = 0."""
    x = torch.zeros(batch, size, dtype=torch.float64)
    return random_start_reference(x, eps=eps, seed=seed, kind=kind, bounds=None, scale=scale)


def test_linf_uniform_is_the_formula(implementation, device):
    x, ids = _images((3, 3, 8, 9), device=device), _ids(3, device)
    u = philox.uniforms(5, ids, streams.START_UNIFORM, 2, 216).view(x.shape)
    expected = (x + (2 * u - 1) * 0.3).clamp(0, 1)
    assert torch.equal(random_start(x, eps=0.3, seed=5, sample_ids=ids, draw=2), expected)


def test_linf_gaussian_is_the_formula(implementation, device):
    x, ids = _images((3, 3, 8, 9), device=device), _ids(3, device)
    n = philox.normals(5, ids, streams.START_NORMAL, 2, 216).view(x.shape)
    expected = x + (n * 0.1).clamp(-0.15, 0.15)
    started = random_start(
        x, eps=0.15, seed=5, sample_ids=ids, draw=2, kind="linf_gaussian", scale=0.1, bounds=None
    )
    assert torch.equal(started, expected)


# The starts are for ever, as the layout is.
GOLDEN = {
    "linf_uniform": [
        [0.6141130924224854, 0.6351204514503479],
        [0.7470607757568359, 0.3047102391719818],
    ],
    "linf_gaussian": [[0.44001318514347076, 0.3054066151380539], [0.75, 0.626618355512619]],
    "l2_uniform": [
        [0.4480306129689931, 0.33141463743738975],
        [0.5831084795880207, 0.5390600838798635],
    ],
    "l2_sphere": [
        [0.43916470000303426, 0.30265418369328567],
        [0.6136900646482866, 0.5534330971217679],
    ],
    "l2_gaussian": [
        [0.44001318514347076, 0.3054066151380539],
        [0.6136900646482866, 0.5534330971217679],
    ],
    "l1_uniform": [
        [0.5710261224134304, 0.5010132363019711],
        [0.5249213025143787, 0.5111739382952537],
    ],
    "l1_gaussian": [[0.48745414428412914, 0.3528475742787123], [0.5126297771930695, 0.5]],
}


@pytest.mark.parametrize("kind", KINDS)
def test_golden_starts(kind, implementation, device):
    """x = 1/2, D = 5: elements 0 and 4 of samples 0 and 2^40 + 3."""
    x = torch.full((2, 5), 0.5, dtype=torch.float64, device=device)
    ids = torch.tensor([0, 2**40 + 3], device=device)
    started = random_start(x, eps=0.25, seed=2026, sample_ids=ids, draw=1, kind=kind)
    expected = torch.tensor(GOLDEN[kind], dtype=torch.float64, device=device)
    torch.testing.assert_close(started[:, ::4], expected, rtol=1e-15, atol=0)


@pytest.mark.parametrize(
    "shape, bounds",
    [
        ((2, 1), None),
        ((3, 15), (0.0, 1.0)),
        ((2, 1023), None),
        ((2, 3, 32, 32), (0.0, 1.0)),
        ((1, 4097), None),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", KINDS)
def test_backends_agree(kind, shape, bounds, device):
    """L-infinity bit for bit; with a norm, 4 ULP of delta and the rounding of x + delta."""
    if not backend.triton_is_installed():
        pytest.skip("needs triton, which is installed on Linux only")
    x = _images(shape, device=device)
    options = dict(sample_ids=_ids(len(x), device), kind=kind, bounds=bounds, **DEFAULTS)
    expected = random_start_reference(x, **options)
    with backend.use_backend("triton"):
        started = random_start(x, **options)
    if kind in LINF:
        assert torch.equal(started, expected)
    else:
        slack = 8 * ROUND * (expected - x).abs() + 2 * ROUND * expected.abs()
        assert ((started - expected).abs() <= slack).all()


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in LINF])
def test_the_error_against_float64_is_a_few_ulp(kind, implementation, device):
    """At x = 0 nothing hides delta: its error is that of a norm, a factor and a product."""
    x = torch.zeros(2, 3072, device=device)
    options = dict(eps=4.0, seed=1, kind=kind, bounds=(-8.0, 8.0))
    started = random_start(x, **options).double()
    exact = random_start_reference(x.double(), **options)
    slack = 8 * ROUND * exact.abs()
    if kind == "l1_gaussian":
        slack = slack + 8 * ROUND * 16  # normals up to 16 lose a threshold of that size
    assert ((started - exact).abs() <= slack).all()


@pytest.mark.parametrize("kind", KINDS)
def test_starts_lie_in_the_ball_and_in_bounds(kind, implementation, device):
    x = _images((4, 3, 16, 16), device=device)
    norm, eps = {"linf": (math.inf, 0.1), "l2": (2, 3.0), "l1": (1, 20.0)}[kind.split("_")[0]]
    started = random_start(x, eps=eps, seed=0, kind=kind)
    distance = torch.linalg.vector_norm((started.double() - x.double()).flatten(1), norm, dim=1)
    rounding = {math.inf: 1, 2: math.sqrt(768), 1: 768}[norm] * ROUND  # contract C3
    assert (distance <= eps * (1 + 1e-6) + rounding).all()
    assert started.min() >= 0 and started.max() <= 1
    assert not torch.equal(started, x)


@pytest.mark.parametrize("kind", KINDS)
def test_without_bounds_nothing_is_clamped(kind, implementation, device):
    x = torch.ones(2, 40, device=device)
    started = random_start(x, eps=3.0, seed=0, kind=kind, bounds=None)
    assert (started > 1).any()
    clamped = random_start(x, eps=3.0, seed=0, kind=kind, bounds=(0.0, 1.0))
    if kind != "l1_gaussian":  # which is projected onto ball and box together
        assert torch.equal(clamped, started.clamp(0, 1))


def test_l1_gaussian_is_the_projection_of_the_draw(implementation, device):
    x = _images((3, 3, 9, 7), dtype=torch.float64, device=device)
    n = philox.normals(1, torch.arange(3, device=device), streams.START_NORMAL, 0, 189)
    drawn = x + n.double().view(x.shape)
    started = random_start(x, eps=5.0, seed=1, kind="l1_gaussian", scale=1.0)
    expected = project_l1_reference(drawn, x, eps=5.0)
    torch.testing.assert_close(started, expected, rtol=0, atol=1e-14)
    assert torch.allclose((started - x).abs().flatten(1).sum(1), torch.tensor(5.0).double())


@pytest.mark.parametrize("kind", ["l2_uniform", "l1_uniform"])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_uniform_in_a_ball_has_a_uniform_power_of_the_radius(kind, size):
    norm = 2 if kind == "l2_uniform" else 1
    radius = torch.linalg.vector_norm(_delta(kind, 4000, size, eps=3.0), norm, dim=1) / 3.0
    assert radius.max() <= 1
    assert stats.kstest((radius**size).numpy(), "uniform").pvalue > 1e-3
    assert stats.kstest((radius ** (size + 1)).numpy(), "uniform").pvalue < 1e-3


@pytest.mark.parametrize("kind", ["l2_uniform", "l2_sphere", "l2_gaussian"])
def test_directions_are_uniform_on_the_sphere(kind):
    delta = _delta(kind, 4000, 3)
    unit = delta / torch.linalg.vector_norm(delta, dim=1, keepdim=True)
    for axis in unit.T:  # Archimedes: each coordinate of a unit vector in space is uniform
        assert stats.kstest(axis.numpy(), stats.uniform(-1, 2).cdf).pvalue > 1e-3
    assert stats.kstest(unit[:, 0].abs().numpy() * 0.9, "uniform").pvalue < 1e-3


def test_l2_sphere_has_the_length_eps():
    for size in (1, 2, 77):
        length = torch.linalg.vector_norm(_delta("l2_sphere", 50, size, eps=0.3), dim=1)
        assert (length - 0.3).abs().max() < 1e-15


def test_l2_gaussian_only_shortens():
    n = philox.normals(0, torch.arange(300), streams.START_NORMAL, 0, 4).double()
    delta = _delta("l2_gaussian", 300, 4, eps=1.0, scale=0.5)
    length = torch.linalg.vector_norm(0.5 * n, dim=1, keepdim=True)
    assert 50 < (length < 1).sum() < 250
    torch.testing.assert_close(delta, 0.5 * n / length.clamp_min(1), rtol=1e-14, atol=0)


def test_l1_uniform_has_dirichlet_shares_and_even_signs():
    size = 4
    delta = _delta("l1_uniform", 4000, size)
    share = delta.abs() / delta.abs().sum(1, keepdim=True)
    for column in share.T:
        assert stats.kstest(column.numpy(), stats.beta(1, size - 1).cdf).pvalue > 1e-3
        assert stats.kstest(column.numpy(), stats.beta(1, size).cdf).pvalue < 1e-3
    orthant = ((delta > 0) * torch.tensor([1, 2, 4, 8])).sum(1)
    assert stats.chisquare(torch.bincount(orthant, minlength=16).numpy()).pvalue > 1e-3


def test_linf_uniform_is_uniform():
    delta = _delta("linf_uniform", 10, 3072, eps=0.5)
    cdf = stats.uniform(-0.5, 1).cdf
    assert stats.kstest(delta.flatten().numpy(), cdf).pvalue > 1e-3
    assert stats.kstest(1.04 * delta.flatten().numpy(), cdf).pvalue < 1e-3


def test_the_gaussian_scale_defaults_to_eps():
    for kind in ("linf_gaussian", "l2_gaussian", "l1_gaussian"):
        assert torch.equal(_delta(kind, 3, 9, eps=0.5), _delta(kind, 3, 9, eps=0.5, scale=0.5))


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_starts_at_the_same_point_in_any_batch(kind, implementation, device):
    x, ids = _images((5, 3, 5, 7), device=device), _ids(5, device)
    draws = torch.tensor([0, 1, 5, 2**24 - 1, 0], dtype=torch.int32, device=device)
    options = dict(eps=0.25, seed=4, kind=kind)
    together = random_start(x, sample_ids=ids, draw=draws, **options)
    order = torch.tensor([3, 0, 2], device=device)
    some = random_start(x[order], sample_ids=ids[order], draw=draws[order], **options)
    assert torch.equal(some, together[order])
    for i in range(5):
        row = slice(i, i + 1)
        one = random_start(x[row], sample_ids=ids[row], draw=int(draws[i]), **options)
        assert torch.equal(one, together[row])


@pytest.mark.parametrize("kind", KINDS)
def test_long_rows_start_at_the_same_point_alone(kind, device):
    """The reference, where torch itself would sum a long row in another order."""
    x = _images((16, 30011), device=device)
    together = random_start_reference(x, kind=kind, **DEFAULTS)
    ids = torch.tensor([7], device=device)
    alone = random_start_reference(x[7:8], kind=kind, sample_ids=ids, **DEFAULTS)
    assert torch.equal(alone, together[7:8])


@pytest.mark.parametrize("kind", KINDS)
def test_threads_change_no_bit(kind):
    x, threads = _images((16, 3072)), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = random_start_reference(x, kind=kind, **DEFAULTS)
        torch.set_num_threads(2)
        assert torch.equal(random_start_reference(x, kind=kind, **DEFAULTS), one)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("kind", KINDS)
def test_the_memory_format_changes_no_bit_and_is_kept(kind, implementation, device):
    for shape, memory_format in (
        ((2, 3, 5, 6), torch.channels_last),
        ((1, 3, 2, 5, 4), torch.channels_last_3d),
    ):
        x = _images(shape, device=device)
        expected = random_start(x, kind=kind, **DEFAULTS)
        assert expected.is_contiguous()
        last = random_start(x.contiguous(memory_format=memory_format), kind=kind, **DEFAULTS)
        assert torch.equal(last, expected) and last.is_contiguous(memory_format=memory_format)
        wide = torch.zeros(*shape[:-1], 2 * shape[-1], device=device)
        wide[..., ::2] = x
        assert torch.equal(random_start(wide[..., ::2], kind=kind, **DEFAULTS), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_seeds_samples_and_draws_start_at_other_points(kind, implementation, device):
    x, ids = torch.full((1, 64), 0.5, device=device), torch.tensor([3], device=device)
    options = dict(seed=1, sample_ids=ids, draw=1) | dict(eps=0.4, kind=kind)
    variants = [{}, dict(seed=2), dict(seed=1 + 2**32), dict(sample_ids=ids + 1), dict(draw=2)]
    variants += [dict(sample_ids=ids + 2**32)]
    starts = [random_start(x, **options | variant) for variant in variants]
    for i, one in enumerate(starts):
        for other in starts[:i]:
            # soft thresholds leave most elements of l1_gaussian at x
            assert not torch.equal(one, other)
            if kind != "l1_gaussian":
                assert (one == other).sum() <= 16  # both at a bound, for clipped normals


@pytest.mark.parametrize("kind", KINDS)
def test_eps_for_each_sample(kind, implementation, device):
    x, ids = _images((3, 50), device=device), torch.arange(3, device=device)
    eps = torch.tensor([0.0, 0.1, 0.7], device=device)
    started = random_start(x, eps=eps, seed=0, kind=kind)
    assert torch.equal(started[0], x[0])
    for i in (1, 2):
        row = slice(i, i + 1)
        alone = random_start(x[row], eps=float(eps[i]), seed=0, kind=kind, sample_ids=ids[row])
        assert torch.equal(alone, started[row])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_computes_in_fp32_and_rounds_once(dtype, kind, implementation, device):
    x = _images((2, 3, 5, 5), dtype=dtype, device=device)
    expected = random_start(x.float(), kind=kind, **DEFAULTS).to(dtype)
    assert torch.equal(random_start(x, kind=kind, **DEFAULTS), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_fp64_computes_in_fp64_from_the_same_draws(kind, implementation, device):
    x = _images((2, 3, 5, 5), dtype=torch.float64, device=device)
    started = random_start(x, kind=kind, **DEFAULTS)
    assert started.dtype == torch.float64
    expected = random_start_reference(x, kind=kind, **DEFAULTS)
    torch.testing.assert_close(started, expected, rtol=0, atol=1e-15)
    narrow = random_start(x.float(), kind=kind, **DEFAULTS)
    torch.testing.assert_close(started, narrow.double(), rtol=0, atol=4 * ROUND)
    assert not torch.equal(started, started.float().double())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0), (0,), (3,)], ids=str)
def test_empty_and_flat_batches(shape, kind, implementation, device):
    x = torch.full(shape, 0.5, device=device)
    started = random_start(x, eps=0.1, seed=0, kind=kind)
    assert started.shape == shape and not started.isnan().any()


# the projection of l1_gaussian sums over x: project_l1 says what NaN does
@pytest.mark.parametrize("kind", [k for k in KINDS if k != "l1_gaussian"])
def test_a_nan_in_x_stays_where_it_is(kind, implementation, device):
    x = torch.full((1, 9), 0.5, device=device)
    x[0, 4] = math.nan
    started = random_start(x, eps=0.1, seed=0, kind=kind)
    assert started.isnan().nonzero().tolist() == [[0, 4]]


def test_one_launch_and_one_allocation_a_call(monkeypatch, device):
    if not backend.triton_is_installed():
        pytest.skip("needs triton, which is installed on Linux only")
    from fastadv.kernels.noise import start as kernels
    from fastadv.ops.noise import start

    launches = []

    class Recorder:
        def __getitem__(self, grid):
            return lambda *args, **kwargs: launches.append(grid)

    class Operators(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            operators.append(func)
            return func(*args, **(kwargs or {}))

    for name in ("elementwise_start_kernel", "ball_start_kernel", "l1_gaussian_start_kernel"):
        monkeypatch.setattr(kernels, name, Recorder())
    x, ids = _images((2, 3, 8, 8), device=device), _ids(2, device)
    draws = torch.zeros(2, dtype=torch.int32, device=device)
    for kind in KINDS:
        launches.clear()
        operators = []
        with Operators():
            start._launch_start(x, ids, draws, 0.1, None, 0.0, 1.0, 0, kind, None)
        assert len(launches) == 1
        assert operators == [torch.ops.aten.empty_like.default]


@pytest.mark.parametrize("kind", ["linf_uniform", "l2_sphere", "l1_gaussian"])  # one a kernel
def test_opcheck(kind, implementation, device):
    x, ids = _images((2, 3, 4, 5), device=device), _ids(2, device)
    draws = torch.zeros(2, dtype=torch.int32, device=device)
    rows = torch.tensor([0.1, 0.2], device=device)
    for eps_rows, scale in ((None, None), (rows, 0.3)):
        args = (x, ids, draws, 0.1, eps_rows, 0.0, 1.0, 3, kind, scale)
        torch.library.opcheck(torch.ops.fastadv.random_start.default, args)


def test_x_is_not_written_and_no_generator_is_touched(implementation, device):
    x = _images((2, 30), device=device)
    before, state = x.clone(), torch.get_rng_state()
    for kind in KINDS:
        random_start(x.requires_grad_(), kind=kind, **DEFAULTS)
    assert torch.equal(x, before) and torch.equal(torch.get_rng_state(), state)


def test_the_reference_has_the_signature_of_the_op(device):
    x = _images((2, 30), device=device)
    with backend.use_backend("reference"):
        for kind in KINDS:
            expected = random_start(x, kind=kind, **DEFAULTS)
            assert torch.equal(random_start_reference(x, kind=kind, **DEFAULTS), expected)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(kind="l3_uniform"), "kind must be one of .*; got 'l3_uniform'"),
        (dict(eps=-0.1), "eps must not be negative; got -0.1"),
        (dict(eps=math.nan), "eps must not be negative; got nan"),
        (dict(scale=-1.0), "scale must not be negative; got -1.0"),
        (dict(draw=-1), r"draw must lie in \[0, 2\^24\); got -1"),
        (dict(draw=2**24), r"draw must lie in \[0, 2\^24\); got 16777216"),
        (dict(draw=torch.zeros(3, dtype=torch.int32)), r"draw must be a \(2,\) integer tensor"),
        (dict(draw=torch.zeros(2)), r"draw must be a \(2,\) integer tensor"),
        (dict(sample_ids=torch.arange(3)), r"sample_ids must be a \(2,\) integer tensor.*\(3,\)"),
        (dict(sample_ids=torch.zeros(2)), "sample_ids must be .* got .* torch.float32"),
        (dict(eps=torch.ones(3)), r"eps must be a float or a \(2,\) tensor"),
        (dict(bounds=(1.0, 0.0)), "bounds must be .* lo < hi"),
        (dict(x=torch.zeros(2, 4, dtype=torch.int64)), "x must be a .* float tensor.* torch.int64"),
        (dict(x=torch.tensor(0.5)), "x must be a .* float tensor"),
    ],
    ids=str,
)
@pytest.mark.parametrize("function", [random_start, random_start_reference])
def test_wrong_arguments_are_errors(change, message, function):
    arguments = dict(x=torch.zeros(2, 4), eps=0.1, seed=0) | change
    with pytest.raises(ValueError, match=message):
        function(arguments.pop("x"), **arguments)


def test_a_whole_call_compiles_without_a_graph_break(device):
    x = _images((2, 30), device=device)

    @torch.compile(fullgraph=True, backend="eager")
    def compiled(x):
        return random_start(x, eps=0.1, seed=-3)

    assert torch.equal(compiled(x), random_start(x, eps=0.1, seed=-3))
