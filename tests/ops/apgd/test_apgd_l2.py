"""The L2 APGD step against the authors' formulas in float64, and its backends."""

import pytest
import torch
from apgd_problems import MidAttack, move_l2

from fastadv.ops import use_backend
from fastadv.ops.apgd.l2 import apgd_l2_step_


def step(case, *, bounds=(0.0, 1.0), hit=True):
    """x_adv, x_previous, x_best, grad_best, x_hit after one step of copies."""
    images, keywords = case.arguments(hit, bounds)
    apgd_l2_step_(*images, **keywords)
    return [*images[:4], keywords.get("x_hit")]


def exact(case, bounds=(0.0, 1.0)):
    """The textbook on the same numbers in float64."""
    wide = MidAttack.__new__(MidAttack)
    wide.__dict__ = case.__dict__ | dict(
        images={k: v.double() for k, v in case.images.items()},
        x_hit=case.x_hit.double(),
        progress=case.progress.double(),
        eps=case.eps.double(),
        step_size=case.step_size.double(),
    )
    return wide.expected(move_l2, bounds)


def check(case, bounds=(0.0, 1.0), hit=True):
    """Contract C1: at most twice the eager error, and one unit in the last place of the dtype."""
    got, expected = step(case, bounds=bounds, hit=hit), exact(case, bounds)
    with use_backend("reference"):
        eager = step(case, bounds=bounds, hit=hit)
    for a, b in zip(got[1:], expected[1:], strict=True):  # copies, not computed
        if a is not None:
            torch.testing.assert_close(a.double(), b, rtol=0, atol=0, equal_nan=True)
    finished = got[0][5], case.images["x_adv"][5]
    torch.testing.assert_close(*finished, rtol=0, atol=0, equal_nan=True)
    ulp = torch.finfo(got[0].dtype).eps
    error = (got[0][:5].double() - expected[0][:5]).abs().max()
    eager_error = (eager[0][:5].double() - expected[0][:5]).abs().max()
    assert error <= 2 * eager_error + ulp
    assert eager_error <= 4 * ulp  # two projections, each a few roundings of values up to 1


@pytest.mark.parametrize("shape", [(1,), (15,), (1, 1023), (3, 32, 32), (2, 3, 4, 3)], ids=str)
@pytest.mark.parametrize("eps", [0.2, 50.0], ids=["outside", "inside"])
def test_equals_the_authors_formulas(shape, eps, either_backend, device):
    check(MidAttack(device, *shape, eps=eps))


@pytest.fixture
def short_rows(monkeypatch):
    """Rows above 64 elements take the kernel for long rows, in chunks of 128."""
    pytest.importorskip("triton", reason="needs triton, which is installed on Linux only")
    from fastadv.kernels.apgd import l2 as kernels

    monkeypatch.setattr(kernels, "ROW_LIMIT", 64)
    monkeypatch.setattr(kernels, "LONG_ROW", (128, 4))


@pytest.mark.parametrize("size", [65, 128, 1000])
@pytest.mark.parametrize("bounds", [(0.0, 1.0), (0.25, 0.5)], ids=str)
def test_long_rows_equal_the_authors_formulas(size, bounds, short_rows, device):
    # bounds without 0: the padding of the last chunk must not enter a norm
    with use_backend("triton"):
        check(MidAttack(device, size, eps=0.3), bounds)


def test_long_rows_at_the_real_limit(count_launches, device):
    case = MidAttack(device, 8193, eps=1.0)
    with use_backend("triton"), count_launches() as launches:
        check(case)
    assert launches == ["apgd_l2_long_kernel"]


@pytest.mark.parametrize("bounds", [(-1.0, 1.0), (0.25, 0.5), None], ids=str)
def test_other_bounds(bounds, either_backend, device):
    check(MidAttack(device, 41, eps=0.2), bounds)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("long", [False, True])
def test_other_dtypes(dtype, long, either_backend, request, device):
    if long:
        request.getfixturevalue("short_rows")
    check(MidAttack(device, 200, dtype=dtype, eps=0.3))


def test_channels_last_and_a_gradient_in_the_other_layout(either_backend, device):
    case = MidAttack(device, 3, 4, 5, eps=0.2)
    for name, image in case.images.items():
        if name != "grad":
            case.images[name] = image.contiguous(memory_format=torch.channels_last)
    case.x_hit = case.x_hit.contiguous(memory_format=torch.channels_last)
    check(case)


def test_without_hits(either_backend, device):
    check(MidAttack(device, 41, eps=0.2), hit=False)


@pytest.mark.filterwarnings("ignore:overflow encountered")  # the interpreter's: squares of 1e30
@pytest.mark.parametrize("value", [0.0, float("inf"), 1e30])
def test_a_gradient_without_a_finite_norm_or_direction_is_no_step(value, either_backend, device):
    case = MidAttack(device, 41, eps=0.2)
    case.images["grad"][1] = value
    still = MidAttack(device, 41, eps=0.2)
    still.images["grad"][1] = 0.0
    assert torch.equal(step(case)[0][1], step(still)[0][1])
    torch.testing.assert_close(
        step(case)[0][1].double(), exact(still)[0][1], rtol=0, atol=4 * 2**-23
    )


def test_a_sample_alone_moves_as_in_a_batch(either_backend, device):
    case = MidAttack(device, 3000, eps=0.4)
    together = step(case)[0]
    for row in range(5):
        images, keywords = case.arguments()
        images = [t[row : row + 1].clone() for t in images]
        for name in ("step_size", "eps", "slots", "progress", "correct", "x_hit"):
            keywords[name] = keywords[name][row : row + 1].clone()
        apgd_l2_step_(*images, **keywords)
        assert torch.equal(images[0][0], together[row])


@pytest.mark.parametrize("shape", [(0,), (0, 3, 4, 4), (2, 0)])
def test_empty_inputs(shape, either_backend, device):
    x = torch.zeros(shape, device=device)
    rows = torch.zeros(shape[0], device=device)
    slots = torch.ones(shape[0], 5, dtype=torch.int32, device=device)
    apgd_l2_step_(
        *[x.clone() for _ in range(6)],
        step_size=rows,
        eps=rows,
        bounds=None,
        slots=slots,
        progress=torch.zeros(shape[0], 5, device=device),
    )


def test_one_launch(count_launches, device):
    images, keywords = MidAttack(device, 41).arguments()
    with use_backend("triton"), count_launches() as launches:
        apgd_l2_step_(*images, **keywords)
    assert launches == ["apgd_l2_kernel"]


def test_opcheck(either_backend, device):
    images, k = MidAttack(device, 9).arguments()
    arguments = (
        *images,
        k["step_size"],
        k["eps"],
        0.0,
        1.0,
        k["slots"],
        k["progress"],
        k["correct"],
        k["x_hit"],
        None,
    )
    torch.library.opcheck(torch.ops.fastadv.apgd_l2_step_.default, arguments)
