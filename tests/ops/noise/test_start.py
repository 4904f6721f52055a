"""Random starts: the formulas, the same from every backend, in the ball and in every dtype."""

import math

import pytest
import torch
from start_problems import DEFAULTS, images, sample_ids

from fastadv.kernels.noise import streams
from fastadv.ops import backend, project_l1_reference
from fastadv.ops.noise import philox
from fastadv.ops.noise.start import KINDS, random_start, random_start_reference

LINF = ("linf_uniform", "linf_gaussian")
ROUND = 2.0**-24  # half an ULP of 1 in fp32


def test_linf_uniform_is_the_formula(implementation, device):
    x, ids = images((3, 3, 8, 9), device=device), sample_ids(3, device)
    u = philox.uniforms(5, ids, streams.START_UNIFORM, 2, 216).view(x.shape)
    expected = (x + (2 * u - 1) * 0.3).clamp(0, 1)
    assert torch.equal(random_start(x, eps=0.3, seed=5, sample_ids=ids, draw=2), expected)


def test_linf_gaussian_is_the_formula(implementation, device):
    x, ids = images((3, 3, 8, 9), device=device), sample_ids(3, device)
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
    x = images(shape, device=device)
    options = dict(sample_ids=sample_ids(len(x), device), kind=kind, bounds=bounds, **DEFAULTS)
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
    x = images((4, 3, 16, 16), device=device)
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
    x = images((3, 3, 9, 7), dtype=torch.float64, device=device)
    n = philox.normals(1, torch.arange(3, device=device), streams.START_NORMAL, 0, 189)
    drawn = x + n.double().view(x.shape)
    started = random_start(x, eps=5.0, seed=1, kind="l1_gaussian", scale=1.0)
    expected = project_l1_reference(drawn, x, eps=5.0)
    torch.testing.assert_close(started, expected, rtol=0, atol=1e-14)
    assert torch.allclose((started - x).abs().flatten(1).sum(1), torch.tensor(5.0).double())


@pytest.mark.parametrize("kind", KINDS)
def test_eps_for_each_sample(kind, implementation, device):
    x, ids = images((3, 50), device=device), torch.arange(3, device=device)
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
    x = images((2, 3, 5, 5), dtype=dtype, device=device)
    expected = random_start(x.float(), kind=kind, **DEFAULTS).to(dtype)
    assert torch.equal(random_start(x, kind=kind, **DEFAULTS), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_fp64_computes_in_fp64_from_the_same_draws(kind, implementation, device):
    x = images((2, 3, 5, 5), dtype=torch.float64, device=device)
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
    x, ids = images((2, 3, 8, 8), device=device), sample_ids(2, device)
    draws = torch.zeros(2, dtype=torch.int32, device=device)
    for kind in KINDS:
        launches.clear()
        operators = []
        with Operators():
            start._launch_start(x, ids, draws, 0.1, None, 0.0, 1.0, 0, kind, None, None)
        assert len(launches) == 1
        assert operators == [torch.ops.aten.empty_like.default]


@pytest.mark.parametrize("kind", ["linf_uniform", "l2_sphere", "l1_gaussian"])  # one a kernel
def test_opcheck(kind, implementation, device):
    x, ids = images((2, 3, 4, 5), device=device), sample_ids(2, device)
    draws = torch.zeros(2, dtype=torch.int32, device=device)
    rows = torch.tensor([0.1, 0.2], device=device)
    for eps_rows, scale in ((None, None), (rows, 0.3)):
        args = (x, ids, draws, 0.1, eps_rows, 0.0, 1.0, 3, kind, scale, None)
        torch.library.opcheck(torch.ops.fastadv.random_start.default, args)


def test_x_is_not_written_and_no_generator_is_touched(implementation, device):
    x = images((2, 30), device=device)
    before, state = x.clone(), torch.get_rng_state()
    for kind in KINDS:
        random_start(x.requires_grad_(), kind=kind, **DEFAULTS)
    assert torch.equal(x, before) and torch.equal(torch.get_rng_state(), state)


def test_the_reference_has_the_signature_of_the_op(device):
    x = images((2, 30), device=device)
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
    x = images((2, 30), device=device)

    @torch.compile(fullgraph=True, backend="eager")
    def compiled(x):
        return random_start(x, eps=0.1, seed=-3)

    assert torch.equal(compiled(x), random_start(x, eps=0.1, seed=-3))
