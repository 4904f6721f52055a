"""APGD's L2 step as an op."""

from collections.abc import Sequence

import torch

from fastadv.ops import layout, reduction, registry
from fastadv.ops.apgd import linf as apgd
from fastadv.ops.apgd import rows as apgd_rows

_TILE = 262144  # more than in L-infinity: a sum of rows is some 25 operations
_GUARD = 1e-12  # the authors': N(v) = v / (||v|| + 1e-12)


def _norm(rows: torch.Tensor) -> torch.Tensor:
    # torch's fp32 root is not correctly rounded on CPUs
    square = reduction.tree_sum(rows * rows)
    return square.double().sqrt().to(rows.dtype).unsqueeze(1)


def _onto_ball(u: torch.Tensor, x: torch.Tensor, radius, lo, hi) -> torch.Tensor:
    """clamp(x + N(u) * min(radius, ||u||), lo, hi), in place of u."""
    norm = _norm(u)
    return u.mul_(torch.minimum(norm, radius) / (norm + _GUARD)).add_(x).clamp_(lo, hi)


def _tile(turn, step, radius, lo, hi, kept, share, images, x_hit) -> None:
    x_adv, x_previous, x_best, grad_best, grad, x = images
    apgd_rows.put(x_best, turn.improved, x_adv)
    apgd_rows.put(grad_best, turn.improved, grad)
    if x_hit is not None:
        apgd_rows.put(x_hit, turn.hit, x_adv)
    start = apgd_rows.pick(turn.restore, x_best, x_adv)
    dtype = layout.compute_dtype(x_adv)
    z, x = start.to(dtype), x.to(dtype)
    inf = float("inf")
    move = apgd_rows.pick(turn.restore, grad_best, grad).to(dtype).nan_to_num_(0.0, inf, -inf)
    norm = _norm(move)
    # a gradient of infinite norm gives no step
    move = apgd_rows.cleared(move, apgd_rows.bit_mask(norm.isfinite(), dtype))
    move.mul_(step / (norm + _GUARD)).add_(z).sub_(x)
    moved = _onto_ball(move, x, radius, lo, hi).sub_(z).mul_(share).add_(z)
    inertia = apgd_rows.cleared(z - x_previous, kept).mul_(0.25)
    moved = _onto_ball(moved.add_(inertia).sub_(x), x, radius, lo, hi)
    apgd_rows.put(x_previous, turn.active, start)
    apgd_rows.put(x_adv, turn.active, moved.to(x_adv.dtype))


def _reference(
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
) -> None:
    if x_adv.numel() == 0:
        return
    turn = apgd_rows.turn_of(slot_state, progress, correct)
    images = [apgd_rows.as_rows(t) for t in (x_adv, x_previous, x_best, grad_best, grad, x)]
    hits = None if x_hit is None else apgd_rows.as_rows(x_hit)
    step, radius = step_size[:, None], eps[:, None]
    kept = apgd_rows.bit_mask(~turn.first, step.dtype)  # x_previous is undefined at first
    share = torch.full_like(step, 0.75).masked_fill_(turn.first, 1.0)
    for rows, _ in apgd_rows.tiles(len(x), len(images[0][0]), _TILE, split_rows=False):
        _tile(
            turn.rows(rows),
            step[rows],
            radius[rows],
            lo,
            hi,
            kept[rows],
            share[rows],
            [t[rows] for t in images],
            None if hits is None else hits[rows],
        )


def _launch(
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
) -> None:
    from fastadv.kernels.apgd.l2 import launch_apgd_l2

    launch_apgd_l2(
        x_adv,
        x_previous,
        x_best,
        grad_best,
        grad,
        x,
        step_size=step_size,
        eps=eps,
        lo=lo,
        hi=hi,
        slot_state=slot_state,
        progress=progress,
        correct=correct,
        x_hit=x_hit,
    )


_STEP = registry.register(
    f"apgd_l2_step_({apgd.STEP_SCHEMA}) -> ()", reference=_reference, launch=_launch
)


def apgd_l2_step_(
    x_adv: torch.Tensor,
    x_previous: torch.Tensor,
    x_best: torch.Tensor,
    grad_best: torch.Tensor,
    grad: torch.Tensor,
    x: torch.Tensor,
    *,
    step_size: torch.Tensor,
    eps: torch.Tensor,
    bounds: Sequence[float] | None,
    slots: torch.Tensor,
    progress: torch.Tensor,
    correct: torch.Tensor | None = None,
    x_hit: torch.Tensor | None = None,
) -> None:
    """One L2 APGD step, in place: x_adv = P(z + a * (P(z + step_size * N(g)) - z) +
    (1 - a) * (z - x_previous)), x_previous = z, with P(w) = clip(x + N(w - x) * min(eps,
    ||w - x||_2)) to bounds and N(v) = v / (||v||_2 + 1e-12).

    Arguments, bookkeeping and errors are those of `apgd_linf_step_`; norms are per sample. A sample
    whose gradient has an infinite norm moves by its momentum only. One launch.

    Example: `apgd_l2_step_(x_adv, x_previous, x_best, grad_best, grad, x, step_size=step_size,
    eps=eps, bounds=(0.0, 1.0), slots=slots, progress=progress)`.
    Source: Croce and Hein 2020, arXiv:2003.01690, section 3, and its authors' code.
    """
    apgd.step_in_place(
        _STEP,
        x_adv,
        x_previous,
        x_best,
        grad_best,
        grad,
        x,
        step_size,
        eps,
        bounds,
        slots,
        progress,
        correct,
        x_hit,
    )
