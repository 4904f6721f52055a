"""The Square Attack steps in L2 and L1 as ops: accept a proposal, make the next."""

import functools

import torch

from fastadv.kernels.noise import streams
from fastadv.ops import layout, reduction, registry
from fastadv.ops.noise import philox
from fastadv.ops.noise.cpu import NUMPY
from fastadv.ops.noise.reference import EAGER, Draws
from fastadv.ops.square import accept as square_accept
from fastadv.ops.square import start as square_start
from fastadv.ops.square.table import SquareTable
from fastadv.ops.steps import arguments as step_arguments
from fastadv.ops.steps import l1

_TINY = 1e-12  # the authors' guard against 0/0


def _windows(
    geometry: torch.Tensor, patterns: torch.Tensor, pattern_start: torch.Tensor, x: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(in the first window, in the second, the pyramid's values), (B, 1, H * W) each."""
    line = torch.arange(x.shape[2], device=x.device).view(-1, 1)
    column = torch.arange(x.shape[3], device=x.device)
    top, left, top2, left2, side, turned = geometry.long().view(-1, 6, 1, 1).unbind(1)
    i, j = line - top, column - left
    inside = (i >= 0) & (i < side) & (j >= 0) & (j < side)
    e = torch.where(turned != 0, j * side + i, i * side + j)
    e = torch.where(inside, e + pattern_start.long().view(-1, 1, 1), 0)
    pattern = torch.where(inside, patterns[e], 0.0)
    i, j = line - top2, column - left2
    other = (i >= 0) & (i < side) & (j >= 0) & (j < side)
    first, second, values = (t.flatten(1).unsqueeze(1) for t in (inside, other, pattern))
    return first, second, values


def _root(square: torch.Tensor) -> torch.Tensor:
    return square.double().sqrt().to(square.dtype)  # torch's fp32 root is not exact on CPUs


def propose_lp(
    x_best: torch.Tensor,
    x: torch.Tensor,
    sign: torch.Tensor,
    geometry: torch.Tensor,
    patterns: torch.Tensor,
    pattern_start: torch.Tensor,
    *,
    norm: str,
    eps: float | torch.Tensor,
    lo: float,
    hi: float,
) -> torch.Tensor:
    """The proposals (B, C, H, W) of queries with geometry (B, 6), patterns that begin at
    pattern_start (B,), and sign (B, C).

    delta = x_best - x loses its second window; the first becomes sign * pyramid + delta / ||delta||
    there, scaled in each channel to the norm of both windows and a channel's part of what ||delta||
    leaves of eps. L2: clamp(x + delta * eps / ||delta||); L1: projected onto ball and box.
    """
    dtype = layout.compute_dtype(x_best)
    batch, channels = x.shape[:2]
    best, clean = (t.to(dtype).contiguous().view(batch, channels, -1) for t in (x_best, x))
    radius = clean.new_full((batch,), eps) if not isinstance(eps, torch.Tensor) else eps
    radius = radius.to(dtype).view(-1, 1, 1)
    delta = best - clean
    first, second, pattern = _windows(geometry, patterns, pattern_start, x)

    def channel_sums(value: torch.Tensor) -> torch.Tensor:
        size = value * value if norm == "l2" else value.abs()
        return reduction.tree_sum(size.flatten(0, 1)).view(batch, channels)

    def norm_of(total: torch.Tensor) -> torch.Tensor:
        return (_root(total) if norm == "l2" else total).unsqueeze(-1)

    image = norm_of(reduction.tree_sum(channel_sums(delta)).view(batch, 1))
    window = norm_of(channel_sums(torch.where(first, delta, 0.0)))
    both = norm_of(channel_sums(torch.where(first | second, delta, 0.0)))
    new = pattern.to(dtype) * sign.to(dtype).unsqueeze(-1) + delta * (1.0 / (window + _TINY))
    if norm == "l2":
        left = (radius * radius - image * image).clamp(min=0)
        share = _root(left / channels + both * both)
    else:
        left = (radius - image).clamp(min=0)
        share = (left / channels + both) * channels
    scale = share / (norm_of(channel_sums(torch.where(first, new, 0.0))) + _TINY)
    delta = torch.where(first, new * scale, torch.where(second, 0.0, delta))
    if norm == "l2":
        length = norm_of(reduction.tree_sum(channel_sums(delta)).view(batch, 1)) + _TINY
        moved = (clean + delta * (radius / length)).clamp(lo, hi)
    else:
        rows = clean.flatten(1)
        radius = radius.view(-1, 1) * torch.full_like(radius.view(-1, 1), square_start.L1_SHARE)
        moved = l1._projected(rows, delta.flatten(1), rows, radius, lo, hi)
    return moved.view(x.shape).to(x_best.dtype)


def _drawn_step(
    source: Draws,
    x_new,
    x_best,
    x,
    loss,
    prediction,
    labels,
    best_loss,
    queries,
    wasted,
    slots,
    restarts,
    sample_ids,
    geometry,
    patterns,
    pattern_start,
    eps,
    eps_rows,
    lo,
    hi,
    seed,
    count,
    norm,
) -> None:
    if x.numel() == 0:
        return
    batch, width = queries.shape
    result = square_accept.accept(
        loss, prediction, labels, best_loss, queries, wasted, slots, count
    )
    taken = result.taken.view(-1, 1, 1, 1)
    new = x_new.unflatten(0, (batch, width))
    for k in range(width):
        x_best.copy_(torch.where(taken == k, new[:, k], x_best))
    going = result.goes_on.view(-1, 1, 1, 1)
    upcoming = result.cursor[:, None] + torch.arange(width, device=x.device)
    for k in range(width if count else 0):
        draw = restarts.long() * count + upcoming[:, k].clamp(0, count - 1)
        sign = source.signs(seed, sample_ids, streams.SQUARE_SIGN, draw, x.shape[1])
        proposal = propose_lp(
            x_best,
            x,
            sign,
            geometry[draw],
            patterns,
            pattern_start[draw],
            norm=norm,
            eps=eps if eps_rows is None else eps_rows,
            lo=lo,
            hi=hi,
        )
        writes = going & (upcoming[:, k] < count).view(-1, 1, 1, 1)
        new[:, k] = torch.where(writes, proposal, new[:, k])
    square_accept.schedule(queries, slots, upcoming.clamp(max=count), result.goes_on, count)


def _lp_launch(
    x_new,
    x_best,
    x,
    loss,
    prediction,
    labels,
    best_loss,
    queries,
    wasted,
    slots,
    restarts,
    sample_ids,
    geometry,
    patterns,
    pattern_start,
    eps,
    eps_rows,
    lo,
    hi,
    seed,
    count,
    norm,
) -> None:
    from fastadv.kernels.square.lp import launch_square_lp

    launch_square_lp(
        x_new,
        x_best,
        x,
        loss,
        prediction,
        labels,
        best_loss,
        queries,
        wasted,
        slots,
        restarts,
        sample_ids,
        geometry,
        patterns,
        pattern_start,
        norm=norm,
        eps=eps,
        eps_rows=eps_rows,
        lo=lo,
        hi=hi,
        seed=seed,
        query_count=count,
        channels_last=not x_best.is_contiguous(),
    )


_LP = registry.register(
    f"square_lp_({square_accept.STATE_SCHEMA}, Tensor sample_ids, Tensor geometry, "
    "Tensor patterns, Tensor pattern_start, float eps, Tensor? eps_rows, float lo, float hi, "
    "int seed, int count, str norm) -> ()",
    reference=functools.partial(_drawn_step, EAGER),
    cpu=functools.partial(_drawn_step, NUMPY),
    cpu_dtypes=None,
    launch=_lp_launch,
)


def _step(
    x_new,
    x_best,
    x,
    loss,
    prediction,
    labels,
    best_loss,
    queries,
    wasted,
    slots,
    restarts,
    sample_ids,
    table,
    seed,
    eps,
    bounds,
    norm,
) -> None:
    square_accept.check_state(
        x_new,
        x_best,
        x,
        loss,
        prediction,
        labels,
        best_loss,
        queries,
        wasted,
        slots,
        restarts,
        table,
        6,
    )
    if (sample_ids.shape, sample_ids.device) != (x.shape[:1], x.device):
        raise ValueError(
            f"sample_ids must be ({x.shape[0]},) on {x.device}; got {tuple(sample_ids.shape)} on "
            f"{sample_ids.device}"
        )
    lo, hi = step_arguments.check_bounds(bounds)
    radius = step_arguments.scalar_or_rows("eps", eps, x)
    memory_format = layout.dense_format(x_best)
    assert memory_format is not None, "checked above"
    _LP(
        x_new,
        x_best,
        layout.in_format(x, memory_format),
        loss,
        prediction,
        labels,
        best_loss,
        queries,
        wasted,
        slots,
        restarts,
        sample_ids.long().contiguous(),
        table.geometry,
        table.patterns,
        table.pattern_start,
        *radius,
        lo,
        hi,
        philox.signed_seed(seed),
        table.queries,
        norm,
    )


def square_l2_(
    x_new: torch.Tensor,
    x_best: torch.Tensor,
    x: torch.Tensor,
    *,
    loss: torch.Tensor,
    prediction: torch.Tensor,
    labels: torch.Tensor,
    best_loss: torch.Tensor,
    queries: torch.Tensor,
    wasted: torch.Tensor,
    slots: torch.Tensor,
    restarts: torch.Tensor,
    sample_ids: torch.Tensor,
    table: SquareTable,
    seed: int,
    eps: float | torch.Tensor,
    bounds: tuple[float, float] | None = (0.0, 1.0),
) -> None:
    """One step of the L2 Square Attack, in place: accept among K evaluated proposals, then write
    the next K, in which the norm of two windows has moved into a pyramid in the first:
    clip(x + eps * delta / ||delta||_2) to bounds.

    Arguments and rules as in `square_linf_`, with a table of this norm; whole rows are written, and
    no query is passed over. sample_ids: (B,) integers, which with seed key the signs of a query's
    channels. One launch; a sum's order depends on the image's size only. Raises ValueError if
    shapes, dtypes or layouts do not fit.

    Example: `square_l2_(x_new, x_best, x, loss=loss, prediction=prediction, labels=y,
    best_loss=best_loss, queries=queries, wasted=wasted, slots=slots, restarts=restarts,
    sample_ids=index, table=square_table(5000, (3, 32, 32), norm="l2", seed=0), seed=0, eps=0.5)`.
    Source: Andriushchenko et al. 2020, arXiv:1912.00049, algorithm 3.
    """
    _step(
        x_new,
        x_best,
        x,
        loss,
        prediction,
        labels,
        best_loss,
        queries,
        wasted,
        slots,
        restarts,
        sample_ids,
        table,
        seed,
        eps,
        bounds,
        "l2",
    )


def square_l1_(
    x_new: torch.Tensor,
    x_best: torch.Tensor,
    x: torch.Tensor,
    *,
    loss: torch.Tensor,
    prediction: torch.Tensor,
    labels: torch.Tensor,
    best_loss: torch.Tensor,
    queries: torch.Tensor,
    wasted: torch.Tensor,
    slots: torch.Tensor,
    restarts: torch.Tensor,
    sample_ids: torch.Tensor,
    table: SquareTable,
    seed: int,
    eps: float | torch.Tensor,
    bounds: tuple[float, float] | None = (0.0, 1.0),
) -> None:
    """`square_l2_` in L1: norms are sums of magnitudes, and a proposal is projected onto the ball
    of radius eps * (1 - 1e-6) and bounds together.

    Example: `square_l1_(x_new, x_best, x, loss=loss, prediction=prediction, labels=y,
    best_loss=best_loss, queries=queries, wasted=wasted, slots=slots, restarts=restarts,
    sample_ids=index, table=square_table(5000, (3, 32, 32), norm="l1", seed=0), seed=0, eps=12.0)`.
    Source: Croce and Hein 2021, arXiv:2103.01208, and their code in AutoAttack.
    """
    _step(
        x_new,
        x_best,
        x,
        loss,
        prediction,
        labels,
        best_loss,
        queries,
        wasted,
        slots,
        restarts,
        sample_ids,
        table,
        seed,
        eps,
        bounds,
        "l1",
    )
