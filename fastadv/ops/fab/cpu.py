"""FAB's ops on CPUs, in numpy: a chunk of rows stays in the cache from first pass to last."""

from collections.abc import Iterator

import numpy as np
import torch

from fastadv.ops.fab.cpu_hyperplane import Hyperplane, row_lengths
from fastadv.ops.fab.reference import DUAL, take_over
from fastadv.ops.fab.verdict import FabStep, as_rows, fooled_rows, judge

# elements of a chunk, of which 5 arrays are at work: 24,000 takes 1.4 times as long for 250 rows of
# 3,072 in L-infinity, 400,000 no less (AMD EPYC with 1 MB of L2, one thread)
_CHUNK = 100_000
_LEAST_LENGTH = 1e-8  # the authors': keeps a1 / (a1 + a2) from 0 / 0


@np.errstate(divide="ignore", over="ignore", invalid="ignore")
def project(
    points: torch.Tensor, w: torch.Tensor, b: torch.Tensor, lo: float, hi: float, norm: str
) -> torch.Tensor:
    """`hyperplane_projection`; the op's arguments by position."""
    if points.numel() == 0:
        return torch.empty_like(points)
    start, normals, value = (t.detach().numpy() for t in (points, w, b.to(points.dtype)))
    d = np.empty_like(start)
    for rows in _chunks(np.arange(len(start)), start.shape[1]):
        hyperplane = Hyperplane(normals[rows], norm)
        # pairwise: b cancels most of this sum
        offset = np.add.reduce(hyperplane.w * start[rows], axis=1) - value[rows]
        d[rows], _ = hyperplane.projection(start[rows], offset, lo, hi)
    return torch.from_numpy(d)


def fab_step(*arguments) -> None:
    """`fab_step_`, of each rule's rows alone; the op's arguments by position."""
    step = FabStep(*arguments)
    if step.x_adv.numel() == 0:
        return
    images = (step.x_adv, step.closest, step.x)
    points, kept, clean = (as_rows(t.detach()).numpy() for t in images)
    fooled = fooled_rows(step)
    length = torch.zeros_like(step.distance)
    lengths, size = length.numpy(), points.shape[1]
    for rows in _chunks(fooled.numpy().nonzero()[0], size):
        lengths[rows] = row_lengths(points[rows] - clean[rows], step.norm)
    verdict = judge(step, fooled, length)
    closer, pulled, moving = (mask.numpy().nonzero()[0] for mask in verdict)
    for rows in _chunks(closer, size):
        kept[rows] = points[rows]
    for rows in _chunks(pulled, size):
        points[rows] = clean[rows] + step.beta * (points[rows] - clean[rows])
    if step.grad is not None:
        _move(step, points, as_rows(step.grad.detach()).numpy(), clean, moving)


@np.errstate(divide="ignore", over="ignore", invalid="ignore")
def _move(
    step: FabStep, points: np.ndarray, grad: np.ndarray, clean: np.ndarray, moving: np.ndarray
) -> None:
    """The step from `points`, in place, of the rows whose indices are `moving` (ascending)."""
    lo, hi = step.lo, step.hi
    difference = step.difference.to(step.x_adv.dtype).numpy()
    for rows in _chunks(moving, points.shape[1]):
        start, origin = points[rows], clean[rows]
        w, value = grad[rows], difference[rows]
        unknown = np.isnan(value)
        if unknown.any():
            w, value = np.where(unknown[:, None], w.dtype.type(0), w), _finite(value)
        hyperplane = Hyperplane(w, step.norm)
        d1, a1 = hyperplane.projection(start, value, lo, hi)
        away = origin - start
        value = _finite(value + np.einsum("ij,ij->i", hyperplane.w, away))
        d2, a2 = hyperplane.projection(origin, value, lo, hi, out=away)
        a1, a2 = np.maximum(a1, _LEAST_LENGTH), np.maximum(a2, _LEAST_LENGTH)
        alpha = np.minimum(_finite(a1 / (a1 + a2)), a1.dtype.type(step.alpha_max))[:, None]
        for d, at, share in ((d1, start, 1 - alpha), (d2, origin, alpha)):
            np.multiply(d, step.eta, out=d)
            np.add(d, at, out=d)
            np.multiply(d, share, out=d)
        np.add(d1, d2, out=d1)
        points[rows] = np.clip(d1, lo, hi, out=d1)


def fab_nearest(
    grad_nearest, difference_nearest, ratio, grad, difference, labels, candidate, norm
) -> None:
    """`fab_nearest_`; the op's arguments by position."""
    if grad.numel() == 0:
        return
    length = torch.from_numpy(_finite_lengths(as_rows(grad.detach()).numpy(), DUAL[norm]))
    nearest = grad_nearest, difference_nearest, ratio
    take_over(nearest, grad, difference, labels != candidate, length)


def _finite_lengths(rows: np.ndarray, norm: str) -> np.ndarray:
    """`row_lengths`, in which what is not finite counts as 0."""
    lengths = np.empty(len(rows), rows.dtype)
    for part in _chunks(np.arange(len(rows)), rows.shape[1]):
        with np.errstate(over="ignore", invalid="ignore"):
            lengths[part] = row_lengths(rows[part], norm)
            if not np.isfinite(lengths[part]).all():
                clean = np.where(np.isfinite(rows[part]), rows[part], rows.dtype.type(0))
                lengths[part] = row_lengths(clean, norm)
    return lengths


def _finite(values: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(values), values.dtype.type(0), values)


def _chunks(rows: np.ndarray, size: int) -> Iterator[slice | np.ndarray]:
    """Indices of a chunk at a time; a slice, which copies nothing, where they are neighbours."""
    height = max(1, _CHUNK // max(1, size))
    for top in range(0, len(rows), height):
        part = rows[top : top + height]
        first, last = int(part[0]), int(part[-1])
        yield slice(first, last + 1) if last - first + 1 == len(part) else part
