"""APGD's L-infinity step as a compiled loop: the bits of the reference."""

from typing import Any

import numpy as np

from fastadv.kernels import box as planes
from fastadv.ops.apgd import loops_rows
from fastadv.ops.apgd.loops_rows import has_to_restore, is_active, is_first, keep
from fastadv.ops.apgd.step import ApgdStep
from fastadv.ops.loops import Address, Count, Real, clamped, inner, larger, loop, pointer, smaller


@inner
def _moved(z, previous, sign, step, lower, upper, share, quarter):
    moved = smaller(larger(z + sign * step, lower), upper)
    moved = (moved - z) * share + z + (z - previous) * quarter
    return smaller(larger(moved, lower), upper)


@inner
def _row(x_adv, x_previous, g, x, at, size, step, radius, lo, hi, share, quarter):
    """quarter: 0.25, of the inertia; 0 in a first step, whose x_previous may be anything."""
    zero = type(step)(0.0)
    for j in range(at, at + size):
        # clamped bounds give the same bits as a clamp after them: both are monotonous
        lower, upper = clamped(x[j] - radius, lo, hi), clamped(x[j] + radius, lo, hi)
        sign = type(step)(g[j] > zero) - type(step)(g[j] < zero)
        start = x_adv[j]
        previous = x_previous[j] if quarter > zero else start
        x_adv[j] = _moved(start, previous, sign, step, lower, upper, share, quarter)
        x_previous[j] = start


@inner
def _row_in_box(x_adv, x_previous, g, box, count, at, size, step, share, quarter):
    zero, to_box = type(step)(0.0), (count - 1) * at
    for j in range(at, at + size):
        lower = box[to_box + planes.LOWER * size + j]
        upper = box[to_box + planes.UPPER * size + j]
        scaled = box[to_box + planes.UNIT * size + j] * step if count > planes.UNIT else step
        sign = type(step)(g[j] > zero) - type(step)(g[j] < zero)
        start = x_adv[j]
        previous = x_previous[j] if quarter > zero else start
        x_adv[j] = _moved(start, previous, sign, scaled, lower, upper, share, quarter)
        x_previous[j] = start


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
    real = type(lo)
    for row in range(rows):
        if not is_active(slots, row):
            continue
        is_hit = correct_at != 0 and correct[row] == 0
        restores = has_to_restore(progress, row)
        keep(x_adv, x_best, grad_best, grad, x_hit, slots, row, size, is_hit, restores)
        g = grad_best if restores else grad
        share, quarter = real(0.75), real(0.25)
        if is_first(slots, row):
            share, quarter = real(1.0), real(0.0)
        at, step = row * size, step_size[row]
        if box_at != 0:
            _row_in_box(x_adv, x_previous, g, box, box_planes, at, size, step, share, quarter)
        else:
            radius = eps[row]
            _row(x_adv, x_previous, g, x, at, size, step, radius, lo, hi, share, quarter)


def apgd_linf_step_(*arguments: Any) -> None:
    """The op's arguments by position."""
    loops_rows.run(_step, ApgdStep(*arguments))
