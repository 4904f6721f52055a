"""Looks at the first gradient of a sample: zero, NaN, or lost at the bounds, it says something."""

import math

import torch

from fastadv.engine.state import SlotState
from fastadv.kernels import slots as columns
from fastadv.ops.bound_counts import Counts
from fastadv.ops.steps import box as boxes
from fastadv.oracle import clamping
from fastadv.oracle.gradient import Oracle


def probe(state: SlotState, grad: torch.Tensor, oracle: Oracle) -> None:
    """Both looks, before the step is made with `grad`; once a load."""
    probe_masked(state, grad, probe_bounds(state, grad, oracle))


def probe_masked(state: SlotState, grad: torch.Tensor, counts: Counts | None = None) -> None:
    """Mark samples, not fooled yet, whose first gradient is zero or has NaN.

    counts: those of `probe_bounds`, where it has looked at the same gradient.
    """
    state.unprobed = False
    if state.box is not None:
        counts = None
    if counts is not None and counts.is_on_host:
        if counts.moving.all() and not counts.undefined.any():
            return
        counts = Counts(*map(torch.from_numpy, counts))
    first = (state.slots[:, columns.STEP] == 1) & (state.slots[:, columns.ACTIVE] == 1)
    # beyond kappa the margin loss is flat by definition, which masks nothing
    first &= state.correct if state.targets is None else state.prediction != state.targets
    if counts is not None:
        zero, nan = first & (counts.moving == 0), first & (counts.undefined > 0)
    else:
        zero, nan = _masked(state, grad.detach(), first)
    state.slots[:, columns.FAULT] |= (
        zero * columns.FAULT_ZERO_GRADIENT + nan * columns.FAULT_NAN_GRADIENT
    ).int()


def _masked(
    state: SlotState, grad: torch.Tensor, first: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(zero, NaN) of the samples `first`."""
    if state.box is not None:  # what may not move does not exist
        grad = boxes.movable(grad, state.box, state.x)
    rows = grad.reshape(len(grad), -1)
    zero = first & ~(rows != 0).any(1)
    if state.box is not None:  # nor is a gradient masked where a mask leaves nothing
        lower, upper = boxes.bounds_of(state.box, state.x)
        zero &= (lower < upper).reshape(len(rows), -1).any(1)
    return zero, first & rows.isnan().any(1)


def probe_bounds(state: SlotState, grad: torch.Tensor, oracle: Oracle) -> Counts | None:
    """Mark what the gradient, at the iterate in `state`, says of each sample at either bound."""
    if oracle.bounds is None or oracle.inset:
        return None
    grad, x_adv = grad.detach(), state.x_adv.detach()
    counts = clamping.counted(grad, x_adv, oracle.bounds, loops=not oracle.is_recorded)
    kept, lost = clamping.judged(counts, math.prod(x_adv.shape[1:]))
    marks = kept[0] * columns.KEPT_AT_LOW + kept[1] * columns.KEPT_AT_HIGH
    marks += lost[0] * columns.LOST_AT_LOW + lost[1] * columns.LOST_AT_HIGH
    state.slots[:, columns.FAULT] |= torch.as_tensor(marks, dtype=torch.int32)
    return counts
