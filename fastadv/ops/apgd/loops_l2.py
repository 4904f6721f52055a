"""APGD's L2 step as a compiled loop. Norms are added up in float64."""

import math
from typing import Any

import numpy as np
import torch

from fastadv.kernels import box as planes
from fastadv.ops.apgd import loops_rows
from fastadv.ops.apgd.loops_rows import has_to_restore, is_active, is_first, keep
from fastadv.ops.apgd.step import ApgdStep
from fastadv.ops.loop_math import squares_of
from fastadv.ops.loops import Address, Count, Real, clamped, inner, larger, loop, pointer, smaller

_GUARD = 1e-12  # as in the reference


@inner
def _norm(values, at, size):
    return type(values[at])(math.sqrt(squares_of(values, at, size)))


@inner
def _onto_ball(u, x, at, size, box, to_box, count, radius, lo, hi):
    """clamp(x + N(u) * min(radius, ||u||)), in place of the `size` elements of u."""
    real = type(radius)
    if count > planes.UNIT:
        for j in range(size):
            u[size + j] = u[j] / box[to_box + planes.UNIT * size + j]
        norm = _norm(u, size, size)
    else:
        norm = _norm(u, 0, size)
    factor = (radius if radius < norm else norm) / (norm + real(_GUARD))
    for j in range(size):
        moved = u[j] * factor + x[at + j]
        if count > 0:
            lower = box[to_box + planes.LOWER * size + j]
            u[j] = smaller(larger(moved, lower), box[to_box + planes.UPPER * size + j])
        else:
            u[j] = clamped(moved, lo, hi)


@inner
def _ascent(u, g, at, size, box, to_box, count, step):
    """step * N(g) in u, 0 where its norm is infinite."""
    real = type(step)
    for j in range(size):
        value = g[at + j]
        if value != value:
            value = real(0.0)
        if count > 0:
            lower = box[to_box + planes.LOWER * size + j]
            if lower >= box[to_box + planes.UPPER * size + j]:
                value = real(0.0)
        if count > planes.UNIT:
            value *= box[to_box + planes.UNIT * size + j]
        u[j] = value
    norm = _norm(u, 0, size)
    factor = step / (norm + real(_GUARD))
    for j in range(size):
        value = u[j]
        if count > planes.UNIT:
            value *= box[to_box + planes.UNIT * size + j]
        u[j] = value * factor if norm < math.inf else real(0.0)


@loop
def _step(
    x_adv_at: Address,
    x_previous_at: Address,
    x_best_at: Address,
    grad_best_at: Address,
    grad_at: Address,
    x_at: Address,
    step_size_at: Address,
    eps_at: Address,
    lo: Real,
    hi: Real,
    slots_at: Address,
    progress_at: Address,
    correct_at: Address,
    x_hit_at: Address,
    box_at: Address,
    box_planes: Count,
    scratch_at: Address,
    rows: Count,
    size: Count,
) -> None:
    x_adv, x_previous, x = pointer(x_adv_at, lo), pointer(x_previous_at, lo), pointer(x_at, lo)
    x_best, grad_best, grad = (
        pointer(x_best_at, lo),
        pointer(grad_best_at, lo),
        pointer(grad_at, lo),
    )
    x_hit, correct = pointer(x_hit_at, lo), pointer(correct_at, np.uint8)
    step_size, eps, box = pointer(step_size_at, lo), pointer(eps_at, lo), pointer(box_at, lo)
    slots, progress = pointer(slots_at, np.int32), pointer(progress_at, lo)
    u, real = pointer(scratch_at, lo), type(lo)
    for row in range(rows):
        if not is_active(slots, row):
            continue
        is_hit = correct_at != 0 and correct[row] == 0
        restores = has_to_restore(progress, row)
        keep(x_adv, x_best, grad_best, grad, x_hit, slots, row, size, is_hit, restores)
        g = grad_best if restores else grad
        starts = is_first(slots, row)
        at, to_box, radius = row * size, box_planes * row * size, eps[row]
        _ascent(u, g, at, size, box, to_box, box_planes, step_size[row])
        for j in range(size):
            u[j] = u[j] + x_adv[at + j] - x[at + j]
        _onto_ball(u, x, at, size, box, to_box, box_planes, radius, lo, hi)
        share = real(1.0) if starts else real(0.75)
        for j in range(size):
            start = x_adv[at + j]
            inertia = real(0.0) if starts else (start - x_previous[at + j]) * real(0.25)
            u[j] = (u[j] - start) * share + start + inertia - x[at + j]
            x_previous[at + j] = start
        _onto_ball(u, x, at, size, box, to_box, box_planes, radius, lo, hi)
        for j in range(size):
            x_adv[at + j] = u[j]


def apgd_l2_step_(*arguments: Any) -> None:
    """The op's arguments by position."""
    step = ApgdStep(*arguments)
    size = step.x_adv.numel() // max(step.x_adv.shape[0], 1)
    loops_rows.run(_step, step, torch.empty(2 * size, dtype=step.x_adv.dtype))
