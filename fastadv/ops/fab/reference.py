"""FAB's step and its candidates without Triton: eager torch, which defines them, and numpy."""

from typing import NamedTuple

import torch

from fastadv.kernels import slots as slot_columns
from fastadv.ops import backend, layout, reduction
from fastadv.ops.fab import cpu as fab_numpy
from fastadv.ops.fab.projection import finite_or_zero, projection, row_norms

_LEAST_LENGTH = 1e-8  # the authors': keeps a1 / (a1 + a2) from 0 / 0
GUARD = 1e-12  # the authors': a zero gradient makes a class far away, not 0 / 0


class _Verdict(NamedTuple):
    """What a step does with each row, (B,) bool: keep x_adv as closest, pull it back, project."""

    closer: torch.Tensor
    pulled: torch.Tensor
    moving: torch.Tensor


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """The rows of a dense tensor in the order of its memory, without a copy."""
    size = tensor[0].numel() if len(tensor) else 0
    return tensor.as_strided((len(tensor), size), (size, 1))


def _fooled(slots, difference, prediction, labels, pulled_back) -> torch.Tensor:
    """Rows whose point is new (moved, not pulled back) and adversarial."""
    new = (slots[:, slot_columns.STEP] > 0) & ~pulled_back
    active = slots[:, slot_columns.ACTIVE] != 0
    return active & new & (prediction != labels) & ~difference.isnan()


def _judge(
    slots: torch.Tensor,
    difference: torch.Tensor,
    fooled: torch.Tensor,
    length: torch.Tensor,
    distance: torch.Tensor,
    pulled_back: torch.Tensor,
    eps: torch.Tensor,
    steps: int,
    stop_early: bool,
    moves: bool,
) -> _Verdict:
    """Rules 1 to 3, written into slots, distance and pulled_back; length: ||x_adv - x||."""
    active = slots[:, slot_columns.ACTIVE] != 0
    step = slots[:, slot_columns.STEP].clone()
    success = slots[:, slot_columns.SUCCESS_STEP]
    within = fooled & (length <= eps)
    over = step >= steps
    if stop_early:
        over = over | within
    pulled, moving = fooled & ~over, active & ~fooled & ~over
    if not moves:
        moving = torch.zeros_like(moving)
    closer = fooled & (length < distance)
    distance.copy_(torch.where(closer, length, distance))
    pulled_back.copy_(pulled | (pulled_back & ~moving))
    success.copy_(torch.where(within & (success < 0), step, success))
    fault = slots[:, slot_columns.FAULT]
    faulty = active & difference.isnan()
    fault.copy_(torch.where(faulty, fault | slot_columns.FAULT_NAN_LOGITS, fault))
    slots[:, slot_columns.ACTIVE].copy_(active & ~over)
    slots[:, slot_columns.STEP].copy_(torch.where(moving, step + 1, step))
    return _Verdict(closer, pulled, moving)


def fab_step_eager(
    x_adv,
    closest,
    grad,
    x,
    difference,
    prediction,
    labels,
    distance,
    pulled_back,
    slots,
    eps,
    lo,
    hi,
    norm,
    steps,
    stop_early,
    alpha_max,
    eta,
    beta,
) -> None:
    if x_adv.numel() == 0:
        return
    dtype = layout.compute_dtype(x_adv)
    stored = _rows(x_adv)
    start, clean = stored.to(dtype), _rows(x).to(dtype)
    away = start - clean
    fooled = _fooled(slots, difference, prediction, labels, pulled_back)
    verdict = _judge(
        slots,
        difference,
        fooled,
        row_norms(away, norm),
        distance,
        pulled_back,
        eps,
        steps,
        stop_early,
        grad is not None,
    )
    closest_rows = _rows(closest)
    closest_rows.copy_(torch.where(verdict.closer.unsqueeze(1), stored, closest_rows))
    new = torch.where(verdict.pulled.unsqueeze(1), clean + beta * away, start)
    if grad is None:
        stored.copy_(new)
        return

    value = difference.to(dtype)
    w = torch.where(value.isnan().unsqueeze(1), 0.0, finite_or_zero(_rows(grad).to(dtype)))
    value = torch.where(value.isnan(), 0.0, value)
    # w . x_adv - b is the difference itself: b would cancel most of it
    clean_value = value - reduction.tree_sum(w * away)
    clean_value = torch.where(clean_value.isnan(), 0.0, clean_value)
    d1 = projection(start, w, value, lo, hi, norm)
    d2 = projection(clean, w, clean_value, lo, hi, norm)
    a1, a2 = (row_norms(d, norm).clamp(min=_LEAST_LENGTH) for d in (d1, d2))
    alpha = (a1 / (a1 + a2)).clamp(0.0, alpha_max).unsqueeze(1)
    moved = (start + eta * d1) * (1.0 - alpha) + (clean + eta * d2) * alpha
    new = torch.where(verdict.moving.unsqueeze(1), moved.clamp(lo, hi), new)
    stored.copy_(new)


def fab_step_on_cpu(
    x_adv,
    closest,
    grad,
    x,
    difference,
    prediction,
    labels,
    distance,
    pulled_back,
    slots,
    eps,
    lo,
    hi,
    norm,
    steps,
    stop_early,
    alpha_max,
    eta,
    beta,
) -> None:
    """`fab_step_eager` where numpy can do the long rows: only those that each rule touches."""
    if not backend.runs_numpy(x_adv) or x_adv.numel() == 0:
        return fab_step_eager(
            x_adv,
            closest,
            grad,
            x,
            difference,
            prediction,
            labels,
            distance,
            pulled_back,
            slots,
            eps,
            lo,
            hi,
            norm,
            steps,
            stop_early,
            alpha_max,
            eta,
            beta,
        )
    points, kept, clean = (_rows(t.detach()).numpy() for t in (x_adv, closest, x))
    fooled = _fooled(slots, difference, prediction, labels, pulled_back)
    hits = fooled.numpy().nonzero()[0]
    length = torch.zeros_like(distance)
    lengths, size = length.numpy(), points.shape[1]
    for rows in fab_numpy.chunks(hits, size):
        lengths[rows] = fab_numpy.row_lengths(points[rows] - clean[rows], norm)
    verdict = _judge(
        slots,
        difference,
        fooled,
        length,
        distance,
        pulled_back,
        eps,
        steps,
        stop_early,
        grad is not None,
    )
    closer, pulled, moving = (mask.numpy().nonzero()[0] for mask in verdict)
    for rows in fab_numpy.chunks(closer, size):
        kept[rows] = points[rows]
    for rows in fab_numpy.chunks(pulled, size):
        points[rows] = clean[rows] + beta * (points[rows] - clean[rows])
    if grad is not None:
        w, value = _rows(grad.detach()).numpy(), difference.to(x_adv.dtype).numpy()
        fab_numpy.move(points, w, clean, value, moving, lo, hi, alpha_max, eta, norm)
    backend.wrote(x_adv, closest)


def fab_nearest_reference(
    grad_nearest, difference_nearest, ratio, grad, difference, labels, candidate, norm
) -> None:
    if grad.numel() == 0:
        return
    dual = {"linf": "l1", "l2": "l2", "l1": "linf"}[norm]
    if backend.runs_numpy(grad):
        w = _rows(grad.detach())
        length = torch.from_numpy(fab_numpy.finite_lengths(w.numpy(), dual))
    else:
        w = finite_or_zero(_rows(grad).to(layout.compute_dtype(grad)))
        length = row_norms(w, dual)
    value = difference.to(ratio.dtype).abs() / (length + GUARD)
    nearer = (labels != candidate) & (value < ratio)
    ratio.copy_(torch.where(nearer, value, ratio))
    difference_nearest.copy_(torch.where(nearer, difference, difference_nearest))
    kept = _rows(grad_nearest)
    kept.copy_(torch.where(nearer.unsqueeze(1), _rows(grad), kept))
