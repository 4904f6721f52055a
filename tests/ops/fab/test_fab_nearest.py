"""The nearest boundary so far: dual norms in float64, what is taken over and what is not."""

import pytest
import torch

from fastadv.ops import backend
from fastadv.ops.fab.step import fab_nearest_

DUAL = {"linf": 1, "l2": 2, "l1": float("inf")}


def candidates(size, device, classes=4, batch=5, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    grads = torch.randn(classes, batch, size, generator=generator).to(device, dtype)
    differences = torch.randn(classes, batch, generator=generator).to(device)
    labels = torch.arange(batch, device=device) % classes
    if dtype == torch.float64:
        differences = differences.double()
    return grads, differences, labels


def nearest(grads, differences, labels, norm):
    grad, difference = torch.full_like(grads[0], 7.0), torch.full_like(differences[0], 7.0)
    ratio = torch.full_like(difference, torch.inf)
    for candidate, (g, d) in enumerate(zip(grads, differences, strict=True)):
        fab_nearest_(grad, difference, ratio, g, d, labels, candidate, norm=norm)
    return grad, difference, ratio


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [5, 784, 5000])
@pytest.mark.parametrize("norm", list(DUAL))
def test_the_nearest_class_but_the_label_wins(norm, size, dtype, implementation, device):
    grads, differences, labels = candidates(size, device, dtype=dtype)
    lengths = torch.linalg.vector_norm(grads.double(), DUAL[norm], dim=2)
    ratios = differences.double().abs() / (lengths + 1e-12)
    rows = torch.arange(len(labels), device=device)
    ratios[labels, rows] = torch.inf
    winner = ratios.argmin(0)
    grad, difference, ratio = nearest(grads, differences, labels, norm)
    assert torch.equal(grad, grads[winner, rows])
    assert torch.equal(difference, differences[winner, rows])
    # two roundings and those of a sum of 5,000 in fp32
    torch.testing.assert_close(ratio.double(), ratios[winner, rows], rtol=2e-6, atol=0)


@pytest.mark.parametrize("norm", list(DUAL))
def test_nan_takes_nothing_over_and_counts_as_zero_in_a_gradient(norm, implementation, device):
    grads, differences, labels = candidates(75, device)
    differences[1:, 0] = float("nan")  # row 0 has label 0: no class is left
    grads[:, 1, ::2] = float("nan")
    clean = grads.nan_to_num(0.0)
    grad, difference, ratio = nearest(grads, differences, labels, norm)
    assert (grad[0] == 7.0).all() and difference[0] == 7.0 and ratio[0] == torch.inf
    expected = nearest(clean, differences, labels, norm)
    assert torch.equal(grad.nan_to_num(0.0), expected[0])
    assert torch.equal(ratio, expected[2])


def test_ties_go_to_the_first_class(implementation, device):
    grads, differences, labels = candidates(75, device)
    grads[2:], differences[2:] = grads[1], differences[1]
    grads[3, :, 0] *= -1  # the same norm
    grad, _, _ = nearest(grads, differences, torch.zeros_like(labels), "linf")
    assert torch.equal(grad, grads[1])


def test_a_zero_gradient_is_far_away(implementation, device):
    grads, differences, labels = candidates(75, device)
    grads[1] = 0.0
    grad, _, ratio = nearest(grads, differences, torch.zeros_like(labels), "l2")
    assert ratio.isfinite().all() and (grad.abs().sum(1) > 0).all()


def test_one_launch(count_launches, device):
    grads, differences, labels = candidates(75, device, classes=1)
    with backend.use_backend("triton"), count_launches() as launches:
        nearest(grads, differences, labels, "linf")
    assert launches == ["fab_nearest_kernel"]


def test_wrong_arguments_are_named(device):
    grads, differences, labels = candidates(5, device)
    good = [grads[0], differences[0], differences[0].clone(), grads[1], differences[1], labels]
    for index, value, message in (
        (0, grads[0].double(), "grad must match grad_nearest"),
        (2, differences[0].double(), r"ratio must be \(5,\) torch.float32"),
        (5, labels.float(), r"labels must be \(5,\) torch.int64"),
    ):
        with pytest.raises(ValueError, match=message):
            fab_nearest_(*good[:index], value, *good[index + 1 :], 1, norm="linf")
