"""The Square Attack steps in L2 and L1 as ops: accept a proposal, make the next."""

import functools

import torch

from fastadv.kernels.noise import streams
from fastadv.ops import registry
from fastadv.ops.noise import philox
from fastadv.ops.noise.cpu import NUMPY
from fastadv.ops.noise.reference import EAGER, Draws
from fastadv.ops.square import accept as square_accept
from fastadv.ops.square.accept import SquareStep
from fastadv.ops.square.pyramid import propose_lp
from fastadv.ops.square.table import SquareTable


def _drawn_step(source: Draws, *arguments) -> None:
    """The op `fastadv::square_lp_` by the signs of `source`; its arguments by position."""
    state, own = square_accept.split(arguments)
    sample_ids, geometry, patterns, pattern_start, eps, eps_rows, lo, hi, seed, count, norm = own
    x_new, x_best, x, queries = state.x_new, state.x_best, state.x, state.queries
    if x.numel() == 0:
        return
    batch, width = queries.shape
    result = square_accept.accept(state, count)
    taken = result.taken.view(-1, 1, 1, 1)
    new = x_new.unflatten(0, (batch, width))
    for k in range(width):
        x_best.copy_(torch.where(taken == k, new[:, k], x_best))
    going = result.goes_on.view(-1, 1, 1, 1)
    upcoming = result.cursor[:, None] + torch.arange(width, device=x.device)
    for k in range(width if count else 0):
        draw = state.restarts.long() * count + upcoming[:, k].clamp(0, count - 1)
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
    square_accept.schedule(queries, state.slots, upcoming.clamp(max=count), result.goes_on, count)


def _lp_launch(*arguments) -> None:
    x_best = arguments[1]
    registry.kernels("square.lp").launch_square_lp(
        *arguments, channels_last=not x_best.is_contiguous()
    )


_LP = registry.register(
    f"square_lp_({square_accept.STATE_SCHEMA}, Tensor sample_ids, Tensor geometry, "
    "Tensor patterns, Tensor pattern_start, float eps, Tensor? eps_rows, float lo, float hi, "
    "int seed, int count, str norm) -> ()",
    reference=functools.partial(_drawn_step, EAGER),
    cpu=functools.partial(_drawn_step, NUMPY),
    cpu_dtypes=None,
    launch=_lp_launch,
    shared=("geometry", "patterns", "pattern_start"),
    tolerance=2e-6,
)


def _step(
    state: SquareStep,
    sample_ids: torch.Tensor,
    table: SquareTable,
    *,
    seed: int,
    eps: float | torch.Tensor,
    bounds: tuple[float, float] | None,
    norm: str,
) -> None:
    """Check the arguments and run the op."""
    state, reach = square_accept.checked(state, table, 6, eps=eps, bounds=bounds)
    x = state.x
    if (sample_ids.shape, sample_ids.device) != (x.shape[:1], x.device):
        raise ValueError(
            f"sample_ids must be ({x.shape[0]},) on {x.device}; got {tuple(sample_ids.shape)} on "
            f"{sample_ids.device}"
        )
    ids, seed = sample_ids.long().contiguous(), philox.signed_seed(seed)
    tables = table.geometry, table.patterns, table.pattern_start
    _LP(*state, ids, *tables, *reach, seed, table.queries, norm)


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
    scalars = loss, prediction, labels, best_loss, queries, wasted, slots, restarts
    state = SquareStep(x_new, x_best, x, *scalars)
    _step(state, sample_ids, table, seed=seed, eps=eps, bounds=bounds, norm="l2")


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
    scalars = loss, prediction, labels, best_loss, queries, wasted, slots, restarts
    state = SquareStep(x_new, x_best, x, *scalars)
    _step(state, sample_ids, table, seed=seed, eps=eps, bounds=bounds, norm="l1")
