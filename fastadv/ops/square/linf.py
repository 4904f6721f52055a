"""The L-infinity Square Attack step as an op: accept a proposal, propose what changes something."""

import torch

from fastadv.ops import layout, registry
from fastadv.ops.square import accept as square_accept
from fastadv.ops.square import cpu as square_cpu
from fastadv.ops.square.accept import SquareStep
from fastadv.ops.square.table import SquareTable


def propose_linf(
    x_best: torch.Tensor,
    x: torch.Tensor,
    sign: torch.Tensor | float,
    eps: float | torch.Tensor,
    lo: float,
    hi: float,
) -> torch.Tensor:
    """clamp(min(max(x_best + 2 eps sign, x - eps), x + eps), lo, hi), in x_best's dtype."""
    dtype = layout.compute_dtype(x_best)
    best, clean = x_best.to(dtype), x.to(dtype)
    eps = torch.as_tensor(eps, dtype=dtype, device=x.device)
    moved = torch.min(torch.max(best + 2.0 * eps * sign, clean - eps), clean + eps)
    return moved.clamp(lo, hi).to(x_best.dtype)


def _changing_queries(
    lowered: torch.Tensor, raised: torch.Tensor, geometry: torch.Tensor, signs: torch.Tensor
) -> torch.Tensor:
    """(B, n): whether a query changes an element, from where a minus or a plus sign would.

    lowered, raised: (B, C, H, W) bool; geometry (B, n, 3), signs (B, n, C). Sums over windows are
    differences of summed-area tables: no work depends on data.
    """
    channels, height, width = lowered.shape[1:]
    area = torch.stack([lowered, raised], 1).int().cumsum(3).cumsum(4)
    area = torch.nn.functional.pad(area, (1, 0, 1, 0)).flatten(1)
    top, left, side = geometry.long().unbind(2)
    plane = (height + 1) * (width + 1)
    total = torch.zeros_like(top)
    for c in range(channels):
        base = ((signs[:, :, c] > 0) * channels + c) * plane
        for i, j, sign in (
            (top, left, 1),
            (top + side, left + side, 1),
            (top + side, left, -1),
            (top, left + side, -1),
        ):
            total += sign * area.gather(1, base + i * (width + 1) + j)
    return total > 0


def _linf_reference(*arguments) -> None:
    state, own = square_accept.split(arguments)
    geometry, signs, eps, eps_rows, lo, hi, count = own
    x_new, x_best, x, queries, slots = (
        state.x_new,
        state.x_best,
        state.x,
        state.queries,
        state.slots,
    )
    if x.numel() == 0:
        return
    batch, width = queries.shape
    old = queries.clone()
    result = square_accept.accept(state, count)
    radius = eps if eps_rows is None else layout.per_sample(eps_rows, x)
    accepted = x_new.view(batch, width, *x.shape[1:]).gather(
        1, result.taken.clamp(min=0).view(-1, 1, 1, 1, 1).expand(-1, 1, *x.shape[1:])
    )[:, 0]
    own = (result.taken >= 0) & (old.gather(1, result.taken.clamp(min=0)[:, None])[:, 0] >= 0)
    x_best.copy_(torch.where(own.view(-1, 1, 1, 1), accepted, x_best))

    first = (state.restarts.long() * count)[:, None]
    every = first + torch.arange(count, device=x.device)
    options = [propose_linf(x_best, x, sign, radius, lo, hi) for sign in (-1.0, 1.0)]
    lowered, raised = (option != x_best for option in options)
    changes = torch.zeros(batch, 0, dtype=torch.bool, device=x.device)
    if count:
        changes = _changing_queries(lowered, raised, geometry[every], signs[every])
    query = torch.arange(count, device=x.device)
    ahead = changes & (query >= result.cursor[:, None])
    rank = ahead.int().cumsum(1)
    upcoming = [
        torch.where(ahead & (rank == k + 1), query, count).amin(1)
        if count
        else torch.zeros(batch, dtype=torch.int64, device=x.device)
        for k in range(width)
    ]
    rows = torch.arange(x.shape[2], device=x.device).view(-1, 1)
    line = torch.arange(x.shape[3], device=x.device)
    new = x_new.unflatten(0, (batch, width))
    for k, q in enumerate(upcoming):
        index = (first[:, 0] + q).clamp(max=max(len(geometry) - 1, 0))
        proposal = x_best
        if count:
            top, left, side = geometry[index].view(batch, 3, 1, 1).unbind(1)
            inside = (rows >= top) & (rows < top + side) & (line >= left) & (line < left + side)
            inside = (inside & (q < count).view(-1, 1, 1))[:, None]
            plus = (signs[index] > 0).view(batch, -1, 1, 1)
            proposal = torch.where(inside, torch.where(plus, options[1], options[0]), x_best)
        keeps = ~result.goes_on.view(-1, 1, 1, 1)
        new[:, k] = torch.where(keeps, new[:, k], proposal)
    square_accept.schedule(queries, slots, torch.stack(upcoming, 1), result.goes_on, count)


def _linf_launch(*arguments) -> None:
    x_best = arguments[1]
    registry.kernels("square.linf").launch_square_linf(
        *arguments, channels_last=not x_best.is_contiguous()
    )


_LINF = registry.register(
    f"square_linf_({square_accept.STATE_SCHEMA}, Tensor geometry, Tensor signs, float eps, "
    "Tensor? eps_rows, float lo, float hi, int count) -> ()",
    reference=_linf_reference,
    cpu=square_cpu.square_linf,
    compiled="square.loops",
    cpu_dtypes=frozenset((torch.float16, *registry.SINGLE_AND_DOUBLE)),
    launch=_linf_launch,
    shared=("geometry", "signs"),
)


def square_linf_(
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
    table: SquareTable,
    eps: float | torch.Tensor,
    bounds: tuple[float, float] | None = (0.0, 1.0),
) -> None:
    """One step of the L-infinity Square Attack, in place: accept among K evaluated proposals, then
    propose clamp(min(max(x_best + 2 eps sign, x - eps), x + eps), *bounds) in the next K windows
    that change x_best.

    x_new: (B * K, C, H, W), row b * K + k was evaluated for slot b; outside of its query's window
    it equals x_best. x_best, x: (B, C, H, W), x_new's dtype and dense layout. loss: (B * K,), which
    ascends; prediction: (B * K,) int64; labels: (B,) int64; best_loss: (B,), loss's dtype. queries:
    (B, K) int32, the query of each row: -1 is the start, table.queries or more is none. wasted:
    (B,) int32, counts evaluations behind an accepted one. slots: (B, 5) int32, `kernels.slots`.
    restarts: (B,) int32, below those of the table. eps: in input units, float or (B,).

    The first row whose loss exceeds best_loss, or whose prediction is not the label, is accepted;
    the rows behind it are discarded, as their proposals were made from another x_best: any K gives
    the results of K = 1. A query that changes nothing cannot be accepted and is passed over. A slot
    that is fooled stops: STEP = SUCCESS_STEP = query + 1, ACTIVE = 0, its rows and queries stay.
    One whose queries are exhausted stops too. Otherwise STEP is the first of the next queries. A
    NaN loss sets FAULT and is not accepted. Slots that are not active are left alone. One launch.
    Raises ValueError if shapes, dtypes or layouts do not fit.

    Example: `square_linf_(x_new, x_best, x, loss=loss, prediction=prediction, labels=y,
    best_loss=best_loss, queries=queries, wasted=wasted, slots=slots, restarts=restarts,
    table=square_table(5000, (3, 32, 32), seed=0), eps=8/255)`.
    Source: Andriushchenko et al. 2020, arXiv:1912.00049, algorithms 1 and 2.
    """
    scalars = loss, prediction, labels, best_loss, queries, wasted, slots, restarts
    state = SquareStep(x_new, x_best, x, *scalars)
    state, reach = square_accept.checked(state, table, 3, eps=eps, bounds=bounds)
    if table.signs.shape[1] != x.shape[1]:
        raise ValueError(f"table has {table.signs.shape[1]} channels, x {x.shape[1]}")
    _LINF(*state, table.geometry, table.signs, *reach, table.queries)
