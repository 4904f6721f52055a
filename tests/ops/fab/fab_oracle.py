"""Projections onto a hyperplane in a box by sorting, in float64: the oracle of FAB's tests."""

import torch


def exact_projection(points, w, offset, norm, bounds=(0.0, 1.0)):
    """d with w . d = -offset; every kink of the sum is tried, so (B, D, D) numbers in blocks."""
    lo, hi = (-torch.inf, torch.inf) if bounds is None else bounds
    points, w, offset = points.double(), w.double(), offset.double()
    rows = zip(points, w, offset, strict=True)
    return torch.stack([_exact_row(*row, norm, lo, hi) for row in rows])


def _exact_row(t, w, offset, norm, lo, hi):
    still = w == 0 if norm == "linf" else w.abs() <= 1e-8
    w = w.masked_fill(still, 0.0)
    upwards = w * (1.0 if offset >= 0 else -1.0) < 0
    room = torch.where(upwards, hi - t, lo - t).masked_fill(still, 0.0)
    weight, size, need = w.abs(), room.abs(), offset.abs()
    gain = torch.where(weight > 0, weight * size, 0.0)
    if norm == "l1":
        order = weight.argsort(dim=0, descending=True, stable=True)
        before = torch.cat([need.new_zeros(1), gain[order].cumsum(0)[:-1]])
        partial = ((need - before) / weight[order]).nan_to_num(0.0, 0.0, 0.0)
        taken = torch.minimum(partial.clamp(min=0), size[order])
        d = torch.zeros_like(t).scatter(0, order, taken)
    else:
        per_level = torch.ones_like(weight) if norm == "linf" else weight
        slope = weight * per_level
        # a coordinate meets its bound at this level; beyond the k-th one the sum is linear
        kinks = torch.where(slope > 0, size / per_level, 0.0)
        kinks, order = kinks.sort()
        full = torch.cat([need.new_zeros(1), gain[order].cumsum(0)])
        # exact at the end of a row, where the difference of sums is rounding alone
        rest = torch.cat([slope[order].flip(0).cumsum(0).flip(0), need.new_zeros(1)])
        starts = torch.cat([need.new_zeros(1), kinks])
        value = torch.where(rest > 0, full + rest * starts, full)
        at = int((value <= need).nonzero().max())
        level = (need - full[at]) / rest[at] if rest[at] > 0 else need.new_tensor(torch.inf)
        reach = torch.where(weight > 0, level * per_level, 0.0)
        d = torch.minimum(reach, size)
    return torch.where(room < 0, -d, d)


def problem(batch, size, kind, seed=0):
    """(points, w, b); kind: "uniform", "bounds" (half of the points at 0 or 1) or "heavy" w."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(batch, size, generator=generator)
    if kind == "bounds":
        at_bound = torch.rand(batch, size, generator=generator) < 0.5
        points = torch.where(at_bound, points.round(), points)
    w = torch.randn(batch, size, generator=generator)
    if kind == "heavy":
        w = w * torch.exp(3 * torch.randn(batch, size, generator=generator))
    offset = (torch.rand(batch, generator=generator) - 0.5) * 0.2 * w.abs().sum(1)
    return points, w, (w * points).sum(1) - offset
