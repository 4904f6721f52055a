"""Projections onto a hyperplane in a box: numpy, eager and Triton against float64 by sorting."""

import pytest
import torch
from fab_oracle import exact_projection, problem

from fastadv.ops.fab.projection import hyperplane_projection

NORMS = ("linf", "l2", "l1")
ULP = 2**-23


def bracketed(d, points, w, b, norm, bounds=(0.0, 1.0)):
    """Whether d lies between the exact displacements for b a rounding nearer and farther.

    Every |d_i| grows with |w . points - b|. Sixteen roundings of fp32 of the largest partial sum:
    what sums over rows of 5,000 take in any backend's order.
    """
    w64, t64 = w.double(), points.double()
    offset = (w64 * t64).sum(1) - b.double()
    slack = 16 * torch.finfo(d.dtype).eps / 2 * ((w64 * t64).abs().sum(1) + b.double().abs())
    assert (offset.abs() > slack).all(), "the test must know the sign"
    near = exact_projection(points, w, offset - offset.sign() * slack, norm, bounds).abs()
    far = exact_projection(points, w, offset + offset.sign() * slack, norm, bounds).abs()
    room = 2 * torch.finfo(d.dtype).eps
    size = d.double().abs()
    assert d.isfinite().all()
    assert (size >= near * (1 - room) - room / 2).all()
    assert (size <= far * (1 + room) + room / 2).all()
    assert (d.double() * w64 * -offset.sign().unsqueeze(1) >= 0).all()


@pytest.mark.parametrize("size", [5, 75, 784, 3072, 5000])
@pytest.mark.parametrize("kind", ["uniform", "bounds", "heavy"])
@pytest.mark.parametrize("norm", NORMS)
def test_projection_is_the_exact_one(norm, kind, size, implementation, device):
    points, w, b = (t.to(device) for t in problem(3, size, kind))
    w[:, ::7] = 0.0
    b = (w * points).sum(1) - torch.tensor([0.01, -0.05, 0.1], device=device) * w.abs().sum(1)
    bracketed(hyperplane_projection(points, w, b, norm=norm), points, w, b, norm)


@pytest.mark.parametrize("share", [0.999, 1 - 1e-5], ids=str)
@pytest.mark.parametrize("norm", NORMS)
def test_nearly_infeasible_rows(norm, share, implementation, device):
    points, w, _ = (t.to(device) for t in problem(2, 300, "uniform"))
    room = torch.where(w < 0, 1 - points, points)  # downwards along w
    b = (w * points).sum(1) - share * (w.abs() * room).sum(1)
    bracketed(hyperplane_projection(points, w, b, norm=norm), points, w, b, norm)


@pytest.mark.parametrize("norm", NORMS)
def test_where_the_box_ends_before_the_hyperplane_the_corner_is_taken(norm, implementation, device):
    points, w, _ = (t.to(device) for t in problem(2, 75, "uniform"))
    b = torch.tensor([-1e4, 1e4], device=device)
    d = hyperplane_projection(points, w, b, norm=norm)
    corner = torch.where(w * torch.tensor([[-1.0], [1.0]], device=device) > 0, 1.0, 0.0)
    assert torch.equal(d, corner - points)


@pytest.mark.parametrize("norm", NORMS)
def test_a_zero_normal_moves_nothing(norm, implementation, device):
    points, w, b = (t.to(device) for t in problem(2, 75, "bounds"))
    w[0] = 0.0
    d = hyperplane_projection(points, w, b, norm=norm)
    assert torch.equal(d[0], torch.zeros_like(d[0]))
    assert d[1].isfinite().all() and d[1].abs().max() > 0


@pytest.mark.parametrize("norm", NORMS)
def test_what_is_not_finite_in_w_counts_as_zero(norm, implementation, device):
    points, w, b = (t.to(device) for t in problem(2, 75, "uniform"))
    clean = w.clone()
    clean[:, :9] = 0.0
    w[:, :9] = torch.tensor([float("nan"), float("inf"), -float("inf")] * 3, device=device)
    d = hyperplane_projection(points, w, b, norm=norm)
    assert torch.equal(d, hyperplane_projection(points, clean, b, norm=norm))


def test_ties_in_l1_go_to_the_first_coordinates(implementation, device):
    points = torch.full((1, 6), 0.5, device=device)
    w = torch.tensor([[1.0, -2.0, 2.0, 1.0, 2.0, 0.5]], device=device)
    d = hyperplane_projection(points, w, (w * points).sum(1) - 1.5, norm="l1")
    assert torch.equal(d, torch.tensor([[0.0, 0.5, -0.25, 0.0, 0.0, 0.0]], device=device))


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_tiny_weights_stay_as_the_authors_have_it(norm, implementation, device):
    points, w, b = (t.to(device) for t in problem(2, 75, "uniform"))
    w[:, :30] *= 1e-9
    d = hyperplane_projection(points, w, b, norm=norm)
    assert d[:, :30].abs().max() == 0 and d[:, 30:].abs().max() > 0


@pytest.mark.parametrize("bounds", [(-1.0, 2.0), (0.1, 0.7), None], ids=str)
@pytest.mark.parametrize("norm", NORMS)
def test_bounds(norm, bounds, implementation, device):
    points, w, b = (t.to(device) for t in problem(2, 75, "uniform"))
    points = 0.1 + 0.6 * points
    b = (w * points).sum(1) - 0.03 * w.abs().sum(1)
    d = hyperplane_projection(points, w, b, norm=norm, bounds=bounds)
    bracketed(d, points, w, b, norm, bounds)


@pytest.mark.parametrize("norm", NORMS)
def test_float64_is_exact_to_its_own_precision(norm, implementation, device):
    points, w, b = (t.to(device).double() for t in problem(2, 784, "bounds"))
    b = (w * points).sum(1) - 0.03 * w.abs().sum(1)
    bracketed(hyperplane_projection(points, w, b, norm=norm), points, w, b, norm)


@pytest.mark.parametrize("norm", NORMS)
def test_half_precision_is_rounded_once(norm, implementation, device):
    points, w, b = (t.to(device).bfloat16() for t in problem(2, 75, "uniform"))
    d = hyperplane_projection(points, w, b, norm=norm)
    full = hyperplane_projection(points.float(), w.float(), b.float(), norm=norm)
    assert d.dtype == torch.bfloat16
    assert torch.equal(d, full.bfloat16())


@pytest.mark.parametrize("size", [5, 75, 784, 3072, 4097])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("implementation", ["cpu", "reference"], indirect=True)
def test_a_row_does_not_depend_on_its_batch(norm, size, implementation):
    points, w, b = problem(64, size, "heavy")
    together = hyperplane_projection(points, w, b, norm=norm)
    for rows in (slice(0, 1), slice(40, 41), slice(3, 10)):
        alone = hyperplane_projection(points[rows], w[rows], b[rows], norm=norm)
        assert torch.equal(alone, together[rows])


def test_an_empty_batch_is_empty(implementation, device):
    empty = torch.empty(0, 5, device=device)
    assert hyperplane_projection(empty, empty, empty[:, 0], norm="l2").shape == (0, 5)


def test_one_launch(count_launches, device):
    from fastadv.ops import backend

    points, w, b = (t.to(device) for t in problem(2, 75, "uniform"))
    with backend.use_backend("triton"), count_launches() as launches:
        hyperplane_projection(points, w, b, norm="linf")
    assert launches == ["hyperplane_kernel"]


def test_wrong_arguments_are_named():
    points, w, b = problem(2, 5, "uniform")
    with pytest.raises(ValueError, match="norm must be one of"):
        hyperplane_projection(points, w, b, norm="l3")
    with pytest.raises(ValueError, match="w must match points"):
        hyperplane_projection(points, w.double(), b, norm="l2")
    with pytest.raises(ValueError, match=r"b must be \(2,\)"):
        hyperplane_projection(points, w, b[:1], norm="l2")
    with pytest.raises(ValueError, match=r"points must be \(B, D\)"):
        hyperplane_projection(points[None], w[None], b, norm="l2")


@pytest.mark.parametrize("size, chunk", [(784, 1024), (2048, 2048), (3072, 1024), (150_528, 2048)])
def test_few_lanes_are_idle_in_chunks_of_a_long_row(size, chunk):
    pytest.importorskip("triton", reason="needs triton, which is installed on Linux only")
    from fastadv.kernels.fab import hyperplane

    block, _ = hyperplane._geometry(size)
    assert block == chunk
    assert size < block or -(-size // block) * block < 9 / 8 * size
