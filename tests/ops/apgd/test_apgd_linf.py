"""The L-infinity APGD step: kernel and reference equal the authors' expressions bit for bit."""

import pytest
import torch
from apgd_problems import MidAttack, move_linf

from fastadv.ops import use_backend
from fastadv.ops.apgd.linf import apgd_linf_step_

# one element; a masked tail; a full block and a tail; more than one tile of the reference
SHAPES = [(1,), (15,), (1, 1023), (3, 32, 32), (2, 3, 4, 3)]


def check(case, arguments, expected):
    images, keywords = arguments
    x_adv, x_previous, x_best, grad_best, grad, x = images
    before = grad.clone(), x.clone()
    assert apgd_linf_step_(*images, **keywords) is None
    got = [x_adv, x_previous, x_best, grad_best, keywords.get("x_hit")]
    for name, a, b in zip(
        ("x_adv", "x_previous", "x_best", "grad_best", "x_hit"), got, expected, strict=True
    ):
        if a is not None:
            torch.testing.assert_close(
                a, b, rtol=0, atol=0, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}"
            )
    for a, b in zip((grad, x), before, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("hit", [False, True], ids=["no_hit", "hit"])
def test_equals_the_authors_expressions(shape, hit, implementation, device):
    case = MidAttack(device, *shape)
    check(case, case.arguments(hit), case.expected(move_linf))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_other_dtypes_compute_in_fp32_or_fp64_and_round_once(dtype, implementation, device):
    case = MidAttack(device, 41, dtype=dtype)
    check(case, case.arguments(), case.expected(move_linf))


@pytest.mark.parametrize("bounds", [(-1.0, 1.0), (0.25, 0.5), None], ids=str)
def test_other_bounds(bounds, implementation, device):
    # (0.25, 0.5): most of x lies outside, where clamping first and clipping first differ
    case = MidAttack(device, 41)
    check(case, case.arguments(bounds=bounds), case.expected(move_linf, bounds))


def test_channels_last_and_a_gradient_in_the_other_layout(implementation, device):
    case = MidAttack(device, 3, 4, 5)
    for name, image in case.images.items():
        if name != "grad":
            case.images[name] = image.contiguous(memory_format=torch.channels_last)
    case.x_hit = case.x_hit.contiguous(memory_format=torch.channels_last)
    check(case, case.arguments(), case.expected(move_linf))


def test_rows_wider_than_a_tile_of_the_reference(device):
    case = MidAttack(device, 70000)
    with use_backend("reference"):
        check(case, case.arguments(), case.expected(move_linf))


@pytest.mark.parametrize("shape", [(0,), (0, 3, 4, 4), (2, 0)])
def test_empty_inputs(shape, implementation, device):
    x = torch.zeros(shape, device=device)
    rows = torch.zeros(shape[0], device=device)
    slots = torch.ones(shape[0], 5, dtype=torch.int32, device=device)
    progress = torch.zeros(shape[0], 5, device=device)
    images = [x.clone() for _ in range(6)]
    apgd_linf_step_(*images, step_size=rows, eps=rows, bounds=None, slots=slots, progress=progress)


def test_one_launch(count_launches, device):
    case = MidAttack(device, 41)
    images, keywords = case.arguments()
    with use_backend("triton"), count_launches() as launches:
        apgd_linf_step_(*images, **keywords)
    assert launches == ["apgd_linf_kernel"]


def test_opcheck(implementation, device):
    case = MidAttack(device, 9)
    images, k = case.arguments()
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
    torch.library.opcheck(torch.ops.fastadv.apgd_linf_step_.default, arguments)


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("grad", torch.zeros(6, 3), r"grad must match x_adv: \(6, 9\)"),
        ("x_best", torch.zeros(9, 6).t(), "x_best must match x_adv.*strides"),
        ("x_adv", torch.zeros(9, 6).t(), "x_adv must be dense"),
        ("eps", torch.zeros(1), r"eps must be \(6,\) torch.float32"),
        ("progress", torch.zeros(6, 5).double(), r"progress must be \(6, 5\) torch.float32"),
        ("correct", torch.zeros(6), r"correct must be \(6,\) torch.bool"),
        ("x_hit", None, "correct and x_hit belong together"),
        ("bounds", (1.0, 0.0), "bounds must be"),
    ],
)
def test_bad_arguments_are_named(name, wrong, message):
    images, keywords = MidAttack("cpu", 9).arguments()
    names = ("x_adv", "x_previous", "x_best", "grad_best", "grad", "x")
    arguments = dict(zip(names, images, strict=True)) | keywords | {name: wrong}
    with pytest.raises(ValueError, match=message):
        apgd_linf_step_(**arguments)
