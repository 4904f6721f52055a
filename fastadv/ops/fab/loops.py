"""FAB's ops as compiled loops: a row goes from verdict to next point before another one begins."""

from typing import Any

import numpy as np
import torch

from fastadv.kernels import slots as columns
from fastadv.ops.fab import reference as fab_reference
from fastadv.ops.fab.loops_hyperplane import KINDS, SIGNED, length, project, weigh
from fastadv.ops.loops import Address, Count, Real, address, inner, loop, pointer
from fastadv.ops.loops_taken import LANES

_LEAST_LENGTH = 1e-8  # the authors': keeps a1 / (a1 + a2) from 0 / 0
_ROWS = 6  # of working memory, in bytes of float64 whatever the dtype
_GAP = 2 * LANES + 24  # numbers behind each: rows of 4 KiB would share lines of the cache


def _memory(size: int) -> torch.Tensor:
    """What a loop works in: LANES sums in float64, then rows."""
    return torch.empty(LANES + _ROWS * (size + _GAP), dtype=torch.float64)


@inner
def _move(x_adv, x, grad, at, size, value, kind, lo, hi, alpha_max, eta, memory):
    """A row between the projections of x_adv and x."""
    sums, first, row = pointer(memory, np.float64), memory + 8 * LANES, 8 * (size + _GAP)
    normal, weight = pointer(first, eta), pointer(first + row, eta)
    slopes, works = pointer(first + 2 * row, eta), pointer(first + 3 * row, eta)
    d1 = pointer(first + 4 * row, eta)
    zero, least = type(eta)(0), type(eta)(_LEAST_LENGTH)
    known = value == value
    value = value if known else zero
    weigh(grad, x_adv, x, at, size, known, kind, normal, weight, works)
    # w . x_adv - b is the difference itself: b would cancel most of it
    at_clean = value - length(works, size, SIGNED, slopes)
    at_clean = at_clean if at_clean == at_clean else zero
    length_adv = zero
    for which in range(2):  # one call, which is inlined once
        points = x if which == 1 else x_adv
        offset = at_clean if which == 1 else value
        d = pointer(first + (4 + which) * row, eta)
        project(normal, weight, points, at, size, offset, kind, lo, hi, d, slopes, works, sums)
        far = length(d, size, kind, slopes)
        far = least if far < least else far
        if which == 0:
            length_adv = far
        else:
            alpha = length_adv / (length_adv + far)
            alpha = alpha_max if alpha > alpha_max else alpha
            rest = type(eta)(1) - alpha
            for j in range(size):
                moved = (x_adv[at + j] + eta * d1[j]) * rest + (x[at + j] + eta * d[j]) * alpha
                moved = lo if moved < lo else moved
                x_adv[at + j] = hi if moved > hi else moved


@loop
def _step(
    x_adv_at: Address,
    closest_at: Address,
    grad_at: Address,
    x_at: Address,
    batch: Count,
    size: Count,
    difference_at: Address,
    prediction_at: Address,
    labels_at: Address,
    distance_at: Address,
    pulled_back_at: Address,
    slots_at: Address,
    eps_at: Address,
    lo: Real,
    hi: Real,
    kind: Count,
    steps: Count,
    stops: Count,
    alpha_max: Real,
    eta: Real,
    beta: Real,
    memory: Address,
) -> None:
    x_adv, closest, x = pointer(x_adv_at, eta), pointer(closest_at, eta), pointer(x_at, eta)
    grad, difference, eps = pointer(grad_at, eta), pointer(difference_at, eta), pointer(eps_at, eta)
    prediction, labels = pointer(prediction_at, np.int64), pointer(labels_at, np.int64)
    distance, slots = pointer(distance_at, eta), pointer(slots_at, np.int32)
    pulled_back = pointer(pulled_back_at, np.uint8)
    first = memory + 8 * LANES
    away, tree = pointer(first, eta), pointer(first + 8 * (size + _GAP), eta)
    for b in range(batch):
        at, state = b * size, b * columns.WIDTH
        if slots[state + columns.ACTIVE] == 0:
            continue
        taken, known = slots[state + columns.STEP], difference[b] == difference[b]
        fooled = taken > 0 and pulled_back[b] == 0 and prediction[b] != labels[b] and known
        far = type(eta)(0)
        if fooled:
            for j in range(size):
                away[j] = x_adv[at + j] - x[at + j]
            far = length(away, size, kind, tree)
        within = fooled and far <= eps[b]
        over = taken >= steps or (stops != 0 and within)
        moving = grad_at != 0 and not fooled and not over
        if fooled and far < distance[b]:
            distance[b] = far
            for j in range(at, at + size):
                closest[j] = x_adv[j]
        if fooled and not over:
            for j in range(at, at + size):
                x_adv[j] = x[j] + beta * (x_adv[j] - x[j])
        if moving:
            _move(x_adv, x, grad, at, size, difference[b], kind, lo, hi, alpha_max, eta, memory)
            slots[state + columns.STEP] = taken + 1
        pulled_back[b] = (fooled and not over) or (pulled_back[b] != 0 and not moving)
        if within and slots[state + columns.SUCCESS_STEP] < 0:
            slots[state + columns.SUCCESS_STEP] = taken
        if not known:
            slots[state + columns.FAULT] |= columns.FAULT_NAN_LOGITS
        slots[state + columns.ACTIVE] = not over


def fab_step_(
    x_adv: torch.Tensor,
    closest: torch.Tensor,
    grad: torch.Tensor | None,
    x: torch.Tensor,
    difference: torch.Tensor,
    prediction: torch.Tensor,
    labels: torch.Tensor,
    distance: torch.Tensor,
    pulled_back: torch.Tensor,
    slots: torch.Tensor,
    eps: torch.Tensor,
    lo: float,
    hi: float,
    norm: str,
    steps: int,
    stop_early: bool,
    alpha_max: float,
    eta: float,
    beta: float,
) -> Any:
    """The op's arguments by position; NotImplemented where labels are int32, or eps or difference
    more exact than x_adv."""
    dtype, batch = x_adv.dtype, len(x_adv)
    if prediction.dtype != torch.int64 or labels.dtype != torch.int64:
        return NotImplemented
    if dtype is torch.float32 and (eps.dtype, difference.dtype) != (dtype, dtype):
        return NotImplemented
    if x_adv.numel() == 0:
        return None
    size = x_adv.numel() // batch
    eps, difference, memory = eps.to(dtype), difference.to(dtype), _memory(size)
    _step[dtype](
        x_adv.data_ptr(),
        closest.data_ptr(),
        address(grad),
        x.data_ptr(),
        batch,
        size,
        difference.data_ptr(),
        prediction.data_ptr(),
        labels.data_ptr(),
        distance.data_ptr(),
        pulled_back.data_ptr(),
        slots.data_ptr(),
        eps.data_ptr(),
        lo,
        hi,
        KINDS[norm],
        steps,
        stop_early,
        alpha_max,
        eta,
        beta,
        memory.data_ptr(),
    )


@loop
def _nearest(
    grad_nearest_at: Address,
    difference_nearest_at: Address,
    ratio_at: Address,
    grad_at: Address,
    difference_at: Address,
    labels_at: Address,
    batch: Count,
    size: Count,
    candidate: Count,
    kind: Count,
    guard: Real,
    memory: Address,
) -> None:
    grad_nearest, grad = pointer(grad_nearest_at, guard), pointer(grad_at, guard)
    difference_nearest = pointer(difference_nearest_at, guard)
    difference, ratio = pointer(difference_at, guard), pointer(ratio_at, guard)
    labels = pointer(labels_at, np.int64)
    first = memory + 8 * LANES
    finite, tree = pointer(first, guard), pointer(first + 8 * (size + _GAP), guard)
    zero = type(guard)(0)
    for b in range(batch):
        if labels[b] == candidate:
            continue
        at = b * size
        for j in range(size):
            finite[j] = grad[at + j] if grad[at + j] - grad[at + j] == 0 else zero
        value = abs(difference[b]) / (length(finite, size, kind, tree) + guard)
        if value < ratio[b]:
            ratio[b], difference_nearest[b] = value, difference[b]
            for j in range(at, at + size):
                grad_nearest[j] = grad[j]


def fab_nearest_(
    grad_nearest: torch.Tensor,
    difference_nearest: torch.Tensor,
    ratio: torch.Tensor,
    grad: torch.Tensor,
    difference: torch.Tensor,
    labels: torch.Tensor,
    candidate: int,
    norm: str,
) -> Any:
    """The op's arguments by position; NotImplemented with int32 labels or a second dtype."""
    dtype, batch = grad.dtype, len(grad)
    if labels.dtype != torch.int64 or difference.dtype != dtype:
        return NotImplemented
    if grad.numel() == 0:
        return None
    size = grad.numel() // batch
    memory = _memory(size)
    _nearest[dtype](
        grad_nearest.data_ptr(),
        difference_nearest.data_ptr(),
        ratio.data_ptr(),
        grad.data_ptr(),
        difference.data_ptr(),
        labels.data_ptr(),
        batch,
        size,
        candidate,
        KINDS[fab_reference.DUAL[norm]],
        fab_reference.GUARD,
        memory.data_ptr(),
    )
