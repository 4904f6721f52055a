"""Which proposal of a slot the Square Attack accepts, and what its ops check; eager torch."""

from typing import NamedTuple

import torch

from fastadv.kernels import slots as columns
from fastadv.ops import layout
from fastadv.ops.square.table import SquareTable
from fastadv.ops.steps import arguments as step_arguments

STATE_SCHEMA = (
    "Tensor(a!) x_new, Tensor(b!) x_best, Tensor x, Tensor loss, Tensor prediction, Tensor labels, "
    "Tensor(c!) best_loss, Tensor(d!) queries, Tensor(e!) wasted, Tensor(f!) slots, "
    "Tensor restarts"
)


class SquareStep(NamedTuple):
    """The tensors of STATE_SCHEMA, by position: what every step of the attack is given."""

    x_new: torch.Tensor
    x_best: torch.Tensor
    x: torch.Tensor
    loss: torch.Tensor
    prediction: torch.Tensor
    labels: torch.Tensor
    best_loss: torch.Tensor
    queries: torch.Tensor
    wasted: torch.Tensor
    slots: torch.Tensor
    restarts: torch.Tensor


class Accepted(NamedTuple):
    """Per slot, (B,): `taken` row (-1: none), its query, where to go on, and whether it goes on."""

    taken: torch.Tensor
    query: torch.Tensor
    cursor: torch.Tensor
    goes_on: torch.Tensor


def split(arguments: tuple) -> tuple[SquareStep, tuple]:
    """(the state, what this norm's op takes behind it)."""
    state = SquareStep(*arguments[: len(SquareStep._fields)])
    return state, arguments[len(state) :]


def accept(state: SquareStep, count: int) -> Accepted:
    """Take each active slot's first valid row that raises the loss or fools; update its scalars."""
    _, _, _, loss, prediction, labels, best_loss, queries, wasted, slots, _ = state
    batch, width = queries.shape
    active = slots[:, columns.ACTIVE] != 0
    loss, prediction = loss.view(batch, width), prediction.view(batch, width)
    valid = (queries < count) & active[:, None]
    wrong = (prediction != labels[:, None]) & ~loss.isnan()
    takes = valid & ((loss > best_loss[:, None]) | wrong)
    position = torch.arange(width, device=loss.device)
    taken = torch.where(takes, position, width).amin(1)
    considered = valid & (position <= taken[:, None])
    any_taken = taken < width
    last = torch.where(considered, queries, -2).amax(1)
    last = torch.where(considered.any(1), last, count - 1)
    row = taken.clamp(max=width - 1)[:, None]
    fooled = any_taken & wrong.gather(1, row)[:, 0]

    best_loss.copy_(torch.where(any_taken, loss.gather(1, row)[:, 0], best_loss))
    wasted += (valid & ~considered).sum(1).to(wasted.dtype)
    has_nan = (considered & loss.isnan()).any(1)
    slots[:, columns.FAULT] |= has_nan.to(slots.dtype) * columns.FAULT_NAN_LOGITS
    for column in (columns.STEP, columns.SUCCESS_STEP):
        slots[:, column] = torch.where(fooled, last.to(slots.dtype) + 1, slots[:, column])
    slots[:, columns.ACTIVE] = (active & ~fooled).to(slots.dtype)
    return Accepted(
        torch.where(any_taken, taken, -1),
        torch.where(any_taken, last, -1),
        last + 1,
        active & ~fooled,
    )


def schedule(
    queries: torch.Tensor,
    slots: torch.Tensor,
    upcoming: torch.Tensor,
    goes_on: torch.Tensor,
    count: int,
) -> None:
    """Write the next queries of the slots that go on; one without any is finished."""
    upcoming = upcoming.to(queries.dtype)
    queries.copy_(torch.where(goes_on[:, None], upcoming, queries))
    first = upcoming[:, 0]
    slots[:, columns.STEP] = torch.where(goes_on, first, slots[:, columns.STEP])
    slots[:, columns.ACTIVE] = (goes_on & (first < count)).to(slots.dtype)


def check_images(x: torch.Tensor) -> None:
    if x.ndim != 4 or not x.is_floating_point():
        raise ValueError(
            f"Square needs images (B, C, H, W) of a float dtype; got {tuple(x.shape)} {x.dtype}"
        )


def checked(
    state: SquareStep,
    table: SquareTable,
    columns_of_geometry: int,
    *,
    eps: float | torch.Tensor,
    bounds: tuple[float, float] | None,
) -> tuple[SquareStep, tuple[float, torch.Tensor | None, float, float]]:
    """(the state with x in x_best's layout, (eps, eps_rows, lo, hi)); raises ValueError."""
    memory_format = _check_state(state, table, columns_of_geometry)
    lo, hi = step_arguments.check_bounds(bounds)
    scalar, rows = step_arguments.scalar_or_rows("eps", eps, state.x)
    state = state._replace(x=layout.in_format(state.x, memory_format))
    return state, (scalar, rows, lo, hi)


def _check_state(
    state: SquareStep, table: SquareTable, columns_of_geometry: int
) -> torch.memory_format:
    """Shapes, dtypes and layouts; values are not read (no synchronisation)."""
    x_new, x_best, x, loss, prediction, labels, best_loss, queries, wasted, slots, restarts = state
    check_images(x)
    batch, device = x.shape[0], x.device
    width = queries.shape[1] if queries.ndim == 2 else 0
    if width < 1:
        raise ValueError(f"queries must be (B, K) with K >= 1; got {tuple(queries.shape)}")
    rows = batch * width
    small = torch.int32
    wanted = (
        ("x_best", x_best, x.shape, x.dtype),
        ("x_new", x_new, (rows, *x.shape[1:]), x.dtype),
        ("loss", loss, (rows,), best_loss.dtype),
        ("prediction", prediction, (rows,), torch.int64),
        ("labels", labels, (batch,), torch.int64),
        ("best_loss", best_loss, (batch,), layout.compute_dtype(best_loss)),
        ("queries", queries, (batch, width), small),
        ("wasted", wasted, (batch,), small),
        ("slots", slots, (batch, columns.WIDTH), small),
        ("restarts", restarts, (batch,), small),
    )
    for name, tensor, shape, dtype in wanted:
        if tensor.shape != shape or tensor.dtype != dtype or tensor.device != device:
            raise ValueError(
                f"{name} must be {tuple(shape)} {dtype} on {device}; got {tuple(tensor.shape)} "
                f"{tensor.dtype} on {tensor.device}"
            )
        if len(shape) < 4 and not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous; got strides {tensor.stride()}")
    memory_format = layout.dense_format(x_best)
    if memory_format is None or not layout.is_dense_as(x_new, memory_format):
        raise ValueError(
            f"x_best and x_new must be dense and share a layout; got strides {x_best.stride()} "
            f"and {x_new.stride()}"
        )
    if table.geometry.shape[1] != columns_of_geometry or table.geometry.device != device:
        raise ValueError(
            f"table must be one of this norm on {device}; got geometry "
            f"{tuple(table.geometry.shape)} on {table.geometry.device}"
        )
    return memory_format
