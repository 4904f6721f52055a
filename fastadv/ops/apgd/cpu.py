"""APGD on CPUs: the check and the L-infinity step on rows, with copies of flagged rows only."""

import numpy as np
import torch

from fastadv.kernels import slots
from fastadv.kernels.apgd import progress as apgd_progress
from fastadv.ops.apgd.rows import as_rows

_TILE = 1 << 16  # elements whose buffers stay in the cache from one operation to the next


def check(*tensors_and_rho) -> None:
    """`apgd_check_` in place; the op's arguments by position."""
    *tensors, rho = tensors_and_rho
    _check(*(tensor.numpy() for tensor in tensors), rho=rho)


def _check(
    progress: np.ndarray,
    step_size: np.ndarray,
    loss: np.ndarray,
    best_loss: np.ndarray,
    slot_state: np.ndarray,
    checkpoints: np.ndarray,
    rho: float,
) -> None:
    step = slot_state[:, slots.STEP]  # the head has advanced it already
    active = slot_state[:, slots.ACTIVE] != 0
    period = checkpoints.take(step - 1, mode="clip")
    columns = progress.T
    increases = columns[apgd_progress.INCREASES]
    first = active & (step == 1)
    starts = bool(first.any())
    later = active & ~first if starts else active
    np.add(increases, loss > columns[apgd_progress.PREVIOUS_LOSS], out=increases, where=later)
    np.copyto(columns[apgd_progress.PREVIOUS_LOSS], loss, where=later)
    np.copyto(columns[apgd_progress.RESTORE], 0.0, where=active)
    if starts:
        for column, value in (
            (apgd_progress.PREVIOUS_LOSS, 0.0),
            (apgd_progress.INCREASES, 0.0),
            (apgd_progress.REDUCED, 1.0),
        ):
            columns[column][first] = value
        columns[apgd_progress.CHECKED_BEST][first] = best_loss[first]
    checks = later & (period > 0)
    if not checks.any():
        return
    fails = increases <= (period * rho).astype(progress.dtype)
    stuck = columns[apgd_progress.CHECKED_BEST] >= best_loss
    halves = checks & (fails | (stuck & (columns[apgd_progress.REDUCED] == 0)))
    for column in (apgd_progress.REDUCED, apgd_progress.RESTORE):
        np.copyto(columns[column], halves, where=checks)
    np.copyto(columns[apgd_progress.CHECKED_BEST], best_loss, where=checks)
    np.copyto(increases, 0.0, where=checks)
    step_size[halves] *= 0.5


def linf_step(
    x_adv,
    x_previous,
    x_best,
    grad_best,
    grad,
    x,
    step_size,
    eps,
    lo,
    hi,
    slot_state,
    progress,
    correct,
    x_hit,
    box,
) -> None:
    """`apgd_linf_step_` in place; the op's arguments by position."""
    if x_adv.numel() == 0:
        return
    images = (x_adv, x_previous, x_best, grad_best, grad, x)
    x_adv, x_previous, x_best, grad_best, grad, x = (as_rows(t.detach()) for t in images)
    slot_state, progress = slot_state.numpy(), progress.numpy()
    active = slot_state[:, slots.ACTIVE] != 0
    first = active & (slot_state[:, slots.STEP] == 1)  # the head has advanced it already
    restores = np.flatnonzero(active & (progress[:, apgd_progress.RESTORE] != 0))
    improved = np.flatnonzero(active & (slot_state[:, slots.IMPROVED] != 0))
    _copy(x_best, x_adv, improved)
    _copy(grad_best, grad, improved)
    if x_hit is not None and correct is not None:
        _copy(as_rows(x_hit), x_adv, np.flatnonzero(active & ~correct.numpy()))
    _copy(x_adv, x_best, restores)
    _copy(x_previous, x_adv, np.flatnonzero(first))  # undefined before: no inertia yet
    if len(restores):
        grad = grad.clone()
        _copy(grad, grad_best, restores)
    share = torch.from_numpy(np.where(first, 1.0, 0.75)).to(x.dtype)[:, None]
    moving = np.flatnonzero(active)
    size = x.shape[1]
    for part in np.array_split(moving, max(1, len(moving) * size // _TILE)):
        if len(part) == 0:
            continue
        whole = part[-1] - part[0] + 1 == len(part)
        rows = slice(part[0], part[-1] + 1) if whole else torch.from_numpy(part)
        step = step_size[rows, None]
        if box is None:
            radius = eps[rows, None]
            # clamped bounds give the same bits as a clamp after them: both are monotonous
            lower = (x[rows] - radius).clamp_(lo, hi)
            upper = (x[rows] + radius).clamp_(lo, hi)
        else:
            lower, upper, *unit = box[rows].unbind(1)
            step = unit[0] * step if unit else step
        _move(x_adv, x_previous, grad[rows], rows, step, lower, upper, share)


def _move(x_adv, x_previous, grad, rows, step, lower, upper, share) -> None:
    z, inertia = x_adv[rows], x_previous[rows]
    # one rounding or two in the sum: the product is exact; sign(NaN) = 0
    moved = torch.addcmul(z, grad.sign(), step)
    torch.clamp(moved, lower, upper, out=moved).sub_(z).mul_(share[rows]).add_(z)
    moved.add_(torch.sub(z, inertia).mul_(0.25))
    torch.clamp(moved, lower, upper, out=moved)
    x_previous[rows] = z
    x_adv[rows] = moved


def _copy(destination: torch.Tensor, source: torch.Tensor, rows: np.ndarray) -> None:
    if len(rows) == len(destination):
        destination.copy_(source)
    elif len(rows):
        destination.numpy()[rows] = source.numpy()[rows]
