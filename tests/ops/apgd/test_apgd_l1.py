"""A step of L1-APGD: every entry of a plan, the bookkeeping, the calls."""

import pytest
import torch
from apgd_problems import l1_problem, slot_state

from fastadv.ops import project_l1_reference, use_backend
from fastadv.ops.apgd.l1 import apgd_l1_step_


def _arguments(device, shape=(2500,), dtype=torch.float32):
    """Five slots in the five entries of a plan, a sixth that is finished; every second improved."""
    x, x_adv, weight, eps = l1_problem(device, dtype, 6, shape)
    x_best = (x + 0.4 * (x_adv - x)).to(dtype)
    x_best.view(6, -1)[:, 1::2] = x.view(6, -1)[:, 1::2]
    grad = weight.clone()
    grad.view(6, -1)[:, 3] = float("nan")
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    images = [x_adv, x_best, torch.randn_like(weight), grad, x]
    rows = {
        name: torch.full((6,), value, dtype=compute, device=device)
        for name, value in dict(step_size=0.3, sparsity=0.1, phase_eps=1.0, support=2500.0).items()
    }
    keywords = rows | dict(
        eps=eps.to(compute),
        bounds=(0.0, 1.0),
        best_loss=torch.ones(6, dtype=compute, device=device),
        slots=slot_state(device, [4, 0, 1, 2, 3, 1], [1, 1, 1, 1, 1, 0], [1, 0, 0, 0, 1, 1]),
        plan=torch.tensor([0, 1, 2, 3, 4], dtype=torch.int32, device=device),
        radius=torch.tensor([3.0, 2.0, 2.0, 1.0, 1.0], dtype=compute, device=device),
        correct=torch.tensor([True, False] * 3, device=device),
        x_hit=torch.full_like(x, float("nan")),
    )
    return images, keywords


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_the_bookkeeping_is_the_same_from_both_backends(dtype, device):
    pytest.importorskip("triton", reason="needs triton, which is installed on Linux only")
    results = []
    for name in ("reference", "triton"):
        images, keywords = _arguments(device, dtype=dtype)
        torch.manual_seed(0)
        images[2] = torch.randn_like(images[2])
        with use_backend(name):
            apgd_l1_step_(*images, **keywords)
        results.append((images, keywords))
    (images, keywords), (theirs, their_keywords) = results
    ulp = torch.finfo(dtype).eps
    torch.testing.assert_close(images[0], theirs[0], rtol=0, atol=4 * ulp)
    for a, b in zip(images[1:], theirs[1:], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    for name in ("step_size", "sparsity", "phase_eps", "support", "best_loss", "x_hit"):
        a, b = keywords[name], their_keywords[name]
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def test_every_entry_of_a_plan(either_backend, device):
    images, k = _arguments(device)
    before = [t.clone() for t in images]
    x_adv, x_best, grad_best, _, x = before
    eps, support = k["eps"].clone(), (x_best != x).sum(1).float()
    assert (support[2] / 2500 < 0.95) and k["radius"][1] == 2.0
    apgd_l1_step_(*images, **k)
    # slots:       random start   move   check        next phase   given start
    radius_of = torch.tensor([1.0, 3.0, 2.0, 2.0, 1.0], device=device) * eps[:5]
    assert torch.equal(k["phase_eps"][:5], radius_of)
    assert k["step_size"].tolist() == [
        float(radius_of[0]),
        0.30000001192092896,
        float(radius_of[2]),
        0.0,
        float(radius_of[4]),
        0.30000001192092896,
    ]
    evaluated = (x_adv != x).sum(1).float()
    assert k["support"].tolist() == [2500.0, 2500.0, support[2], 2500.0, evaluated[4], 2500.0]
    shares = torch.stack([support[2], evaluated[4]]) / 2500 / 1.5
    assert torch.equal(k["sparsity"][[2, 4]], shares)
    assert torch.equal(k["sparsity"][[0, 1, 3, 5]], torch.tensor([0.2, 0.1, 0.1, 0.1]).to(device))
    assert k["best_loss"].tolist() == [1.0, 1.0, 1.0, -float("inf"), 1.0, 1.0]
    improved = torch.tensor([True, False, False, False, True, False], device=device)
    torch.testing.assert_close(images[1][improved], x_adv[improved], rtol=0, atol=0)
    torch.testing.assert_close(images[1][~improved], x_best[~improved], rtol=0, atol=0)
    torch.testing.assert_close(images[2][~improved], grad_best[~improved], rtol=0, atol=0)
    torch.testing.assert_close(k["x_hit"][[1, 3]], x_adv[[1, 3]], rtol=0, atol=0)
    assert k["x_hit"][[0, 2, 4, 5]].isnan().all()
    # the next phase starts from the projection of the best iterate
    expected = project_l1_reference(x_best[3:4], x[3:4], eps=radius_of[3:4])
    torch.testing.assert_close(images[0][3:4], expected, rtol=0, atol=2**-22)
    torch.testing.assert_close(images[0][5], x_adv[5], rtol=0, atol=0)
    # the check's row moved from the best iterate, not from the last one
    u = images[0][2] - x[2]
    assert u.abs().sum() <= radius_of[2] * (1 + 1e-5)
    assert torch.equal(images[3][2], grad_best[2])


def test_channels_last_and_a_gradient_in_the_other_layout(either_backend, device):
    images, k = _arguments(device, (3, 4, 5))
    last = [t.contiguous(memory_format=torch.channels_last) for t in images[:3]]
    clean = images[4].contiguous(memory_format=torch.channels_last)
    hit = k["x_hit"].contiguous(memory_format=torch.channels_last)
    copies = {n: v.clone() if isinstance(v, torch.Tensor) else v for n, v in k.items()}
    apgd_l1_step_(*last, images[3].clone(), clean, **(copies | dict(x_hit=hit)))
    apgd_l1_step_(*images, **k)
    torch.testing.assert_close(last[0], images[0], rtol=0, atol=2**-22)
    torch.testing.assert_close(last[1], images[1], rtol=0, atol=0)
    torch.testing.assert_close(hit, k["x_hit"], rtol=0, atol=0, equal_nan=True)


def test_two_launches(count_launches, device):
    images, keywords = _arguments(device, (41,))
    with use_backend("triton"), count_launches() as launches:
        apgd_l1_step_(*images, **keywords)
    assert launches == ["apgd_l1_check_kernel", "l1_kernel"]


def test_opcheck(either_backend, device):
    images, k = _arguments(device, (41,))
    arguments = (
        *images,
        k["step_size"],
        k["sparsity"],
        k["phase_eps"],
        k["support"],
        k["eps"],
        k["best_loss"],
        k["slots"],
        k["plan"],
        k["radius"],
        k["correct"],
        k["x_hit"],
    )
    torch.library.opcheck(torch.ops.fastadv.apgd_l1_check_.default, arguments)


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("plan", torch.zeros(5), r"plan must be \(steps \+ 1,\) int32"),
        (
            "radius",
            torch.zeros(4),
            r"radius must be a floating-point tensor of plan's shape \(5,\)",
        ),
        ("support", torch.zeros(6).double(), r"support must be \(6,\) torch.float32"),
        ("correct", None, "correct and x_hit belong together"),
    ],
)
def test_bad_arguments_are_named(name, wrong, message):
    images, keywords = _arguments("cpu", (41,))
    with pytest.raises(ValueError, match=message):
        apgd_l1_step_(*images, **(keywords | {name: wrong}))


@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0)])
def test_empty_inputs(shape, either_backend, device):
    x, rows = torch.zeros(shape, device=device), torch.zeros(shape[0], device=device)
    names = ("step_size", "sparsity", "phase_eps", "support", "eps", "best_loss")
    apgd_l1_step_(
        *[x.clone() for _ in range(5)],
        **{n: rows.clone() for n in names},
        bounds=None,
        slots=torch.ones(shape[0], 5, dtype=torch.int32, device=device),
        plan=torch.zeros(2, dtype=torch.int32, device=device),
        radius=torch.ones(2, device=device),
    )
