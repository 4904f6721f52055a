"""The Square Attack's table and start: the authors' schedule, patterns, stripes and grids."""

import math

import pytest
import torch

from fastadv.kernels.noise import streams
from fastadv.ops.noise import philox
from fastadv.ops.square import table as square_table
from fastadv.ops.square.start import square_start
from fastadv.ops.square.table import SquareTable, square_pattern, square_sides, square_table_from


def scheduled_p(query, queries, p_init, rescale):
    """The authors' schedule, written as they state it: halved at each of these queries."""
    if rescale:
        query = int(query / queries * 10000)
    halvings = sum(query > at for at in (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000))
    return p_init / 2**halvings


@pytest.mark.parametrize("queries, rescale", [(100, False), (12000, False), (300, True)])
@pytest.mark.parametrize("shape", [(28, 28), (32, 32), (5, 9), (224, 200)], ids=str)
def test_sides_follow_the_schedule(queries, rescale, shape):
    for p_init in (0.8, 0.3):
        linf = square_sides(queries, *shape, norm="linf", p_init=p_init, rescale=rescale)
        l2 = square_sides(queries, *shape, norm="l2", p_init=p_init, rescale=rescale)
        for query in range(queries):
            p = scheduled_p(query, queries, p_init, rescale)
            side = round(math.sqrt(p * shape[0] * shape[1]))
            assert linf[query] == min(max(side, 1), *shape)
            odd = max(side, 3)
            assert l2[query] == min(odd + (odd % 2 == 0), *shape)


def eta(side, norm):
    """The authors' pyramids by their loops: growing rectangles of falling height, in float64."""
    power = {"l2": 2, "l1": 4}[norm]

    def unit(m):
        return m / (m.square().sum().sqrt() if norm == "l2" else m.abs().sum())

    def half(rows, columns):
        out = torch.zeros(rows, columns, dtype=torch.float64)
        r, c = rows // 2 + 1, columns // 2 + 1
        for k in range(max(r, c)):
            top, left = r - 1 - k, c - 1 - k
            out[max(top, 0) : top + 2 * k + 1, max(left, 0) : left + 2 * k + 1] += (k + 1) ** -power
        return unit(out) if rows else out

    return unit(torch.cat([half(side // 2, side), -half(side - side // 2, side)]))


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("side", [1, 2, 3, 4, 5, 6, 7, 25, 40])
def test_patterns_are_the_pyramids_of_the_authors(norm, side):
    # one rounding to fp32 of a float64 value
    error = (square_pattern(side, norm).double() - eta(side, norm)).abs()
    assert (error <= 2.0**-24 * eta(side, norm).abs() * (1 + 1e-6)).all()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_table_is_its_draws(norm):
    table = square_table.square_table(50, (3, 9, 12), norm=norm, seed=-5, restarts=2)
    rows, sample = torch.arange(100), torch.zeros(100, dtype=torch.int64)
    u = philox.uniforms(-5, sample, streams.SQUARE_POSITION, rows, 4)
    sides = torch.from_numpy(square_sides(50, 9, 12, norm=norm)).repeat(2)
    height, width = (9 - sides), (12 - sides)
    assert torch.equal(table.geometry[:, 0], (height * u[:, 0]).floor().int())
    assert torch.equal(table.geometry[:, 1], (width * u[:, 1]).floor().int())
    assert table.queries == 50 and table.geometry.dtype == torch.int32
    if norm == "linf":
        assert torch.equal(table.geometry[:, 2], sides)
        signs = philox.signs(-5, sample, streams.SQUARE_SIGN, rows, 3)
        assert torch.equal(table.signs.float(), signs) and table.signs.dtype == torch.int8
    else:
        assert torch.equal(table.geometry[:, 2], (height * u[:, 2]).floor().int())
        assert torch.equal(table.geometry[:, 3], (width * u[:, 3]).floor().int())
        assert torch.equal(table.geometry[:, 4], sides)
        assert set(table.geometry[:, 5].tolist()) == {0, 1}
        for row in (0, 20, 49, 99):
            side, start = int(sides[row]), int(table.pattern_start[row])
            pattern = table.patterns[start : start + side * side].view(side, side)
            assert torch.equal(pattern, square_pattern(side, norm))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_squares_lie_inside_and_never_at_the_last_position(norm):
    top_most = torch.full((40, 2 if norm == "linf" else 4), 1 - 2.0**-24)
    given = dict(signs=torch.ones(40, 2)) if norm == "linf" else dict(transposed=torch.ones(40))
    geometry = square_table_from(top_most, (2, 9, 14), norm=norm, **given).geometry
    side = geometry[:, 2 if norm == "linf" else 4]
    assert torch.equal(geometry[:, 0], (9 - side - 1).clamp(min=0))
    assert torch.equal(geometry[:, 1], (14 - side - 1).clamp(min=0))


def test_a_table_on_a_device_is_the_same(device):
    here, there = (
        square_table.square_table(30, (1, 8, 8), norm="l2", seed=1, device=d)
        for d in ("cpu", device)
    )
    for name in SquareTable._fields[:4]:
        assert torch.equal(getattr(there, name).cpu(), getattr(here, name))


def test_tables_that_cannot_be_are_refused():
    draw = torch.rand(6, 2)
    with pytest.raises(ValueError, match=r"norm must be one of.*'l3'"):
        square_table.square_table(5, (1, 8, 8), norm="l3", seed=0)
    with pytest.raises(ValueError, match=r"p_init must lie in \(0, 1\]; got 0"):
        square_table.square_table(5, (1, 8, 8), p_init=0.0, seed=0)
    with pytest.raises(ValueError, match=r"shape \(C, H, W\); got \(64,\)"):
        square_table.square_table(5, (64,), seed=0)
    with pytest.raises(ValueError, match=r"must lie in \[0, 2\^24\); got 4 \* 5000000"):
        square_table.square_table(5_000_000, (1, 8, 8), seed=0, restarts=4)
    with pytest.raises(ValueError, match=r"linf needs uniforms \(rows, 2\) and signs"):
        square_table_from(draw, (1, 8, 8), norm="linf")
    with pytest.raises(ValueError, match="multiple of restarts; got 6 and 4"):
        square_table_from(draw, (1, 8, 8), norm="linf", signs=draw[:, :1], restarts=4)


def test_the_linf_start_is_vertical_stripes(device):
    x = torch.rand(3, 2, 6, 5, generator=torch.Generator().manual_seed(0)).to(device)
    ids = torch.tensor([4, 2**40, 9], device=device)
    start = square_start(x, eps=0.3, norm="linf", seed=3, sample_ids=ids, draw=2)
    signs = philox.signs(3, ids, streams.SQUARE_INIT, 2, 10).view(3, 2, 1, 5)
    assert torch.equal(start, (x + torch.tensor(0.3, device=device) * signs).clamp(0, 1))


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("shape", [(3, 28, 28), (1, 5, 5), (2, 7, 12), (1, 24, 13)], ids=str)
def test_the_grid_is_of_norm_eps_and_made_of_pyramids(device, norm, shape):
    x = torch.full((2, *shape), 0.5, dtype=torch.float64, device=device)
    eps = torch.tensor([0.5, 1.5], device=device)
    start = square_start(x, eps=eps, norm=norm, seed=0, bounds=None if norm == "l2" else (0, 1))
    delta = start - x
    side = shape[1] // 5
    corner = (shape[1] - 5 * side) // 2
    if norm == "l2":
        assert torch.allclose(delta.flatten(1).norm(dim=1), eps.double(), rtol=1e-9, atol=0)
        pattern = square_pattern(side, "l2").to(device).double()
        for tile in delta[0, :, corner : corner + side, corner : corner + side]:
            likeness = [float((tile * p).sum() / tile.norm()) for p in (pattern, pattern.T)]
            assert max(abs(v) for v in likeness) > 1 - 1e-6
    else:
        size = delta.abs().flatten(1).sum(1)
        assert torch.allclose(size, eps.double() * (1 - 1e-6), rtol=1e-9, atol=0)
    assert (delta[..., :corner, :] == 0).all()


def test_a_start_does_not_depend_on_its_batch(device):
    x = torch.rand(5, 3, 10, 11, generator=torch.Generator().manual_seed(0)).to(device)
    for norm in ("linf", "l2", "l1"):
        ids = torch.arange(5, device=device)
        whole = square_start(x, eps=0.5, norm=norm, seed=0, sample_ids=ids)
        alone = square_start(x[3:4], eps=0.5, norm=norm, seed=0, sample_ids=ids[3:4])
        assert torch.equal(alone, whole[3:4])
        turned = x.contiguous(memory_format=torch.channels_last)
        turned = square_start(turned, eps=0.5, norm=norm, seed=0, sample_ids=ids)
        assert turned.is_contiguous(memory_format=torch.channels_last)
        # L1 sums in memory order
        assert torch.allclose(turned, whole, rtol=0, atol=0 if norm != "l1" else 2e-7)
        assert square_start(x[:0], eps=0.5, norm=norm, seed=0).shape == (0, 3, 10, 11)


def test_starts_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r"Square needs images \(B, C, H, W\).*got \(2, 9\)"):
        square_start(torch.rand(2, 9), eps=0.1, seed=0)
    with pytest.raises(ValueError, match="l2 needs images of at least 5 x 5 pixels; got 4 x 9"):
        square_start(torch.rand(2, 1, 4, 9), eps=0.1, norm="l2", seed=0)
    assert square_start(torch.rand(2, 1, 4, 9), eps=0.1, seed=0).shape == (2, 1, 4, 9)
