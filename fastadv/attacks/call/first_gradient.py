"""Looks at the first gradient of a sample: zero, NaN, or lost at the bounds, it says something."""

import torch

from fastadv.engine.state import SlotState
from fastadv.kernels import slots as columns
from fastadv.ops.steps import box as boxes
from fastadv.oracle import clamping
from fastadv.oracle.gradient import Oracle


def probe(state: SlotState, grad: torch.Tensor, oracle: Oracle) -> None:
    """Both looks, before the step is made with `grad`; once a load."""
    probe_bounds(state, grad, oracle)
    probe_masked(state, grad)


def probe_masked(state: SlotState, grad: torch.Tensor) -> None:
    """Mark samples, not fooled yet, whose first gradient is zero or has NaN."""
    grad = grad.detach()
    if state.box is not None:  # what may not move does not exist
        grad = boxes.movable(grad, state.box, state.x)
    rows = grad.reshape(len(grad), -1)
    first = (state.slots[:, columns.STEP] == 1) & (state.slots[:, columns.ACTIVE] == 1)
    # beyond kappa the margin loss is flat by definition, which masks nothing
    first &= state.correct if state.targets is None else state.prediction != state.targets
    zero = first & ~(rows != 0).any(1)
    if state.box is not None:  # nor is a gradient masked where a mask leaves nothing
        lower, upper = boxes.bounds_of(state.box, state.x)
        zero &= (lower < upper).reshape(len(rows), -1).any(1)
    nan = first & rows.isnan().any(1)
    state.slots[:, columns.FAULT] |= (
        zero * columns.FAULT_ZERO_GRADIENT + nan * columns.FAULT_NAN_GRADIENT
    ).int()
    state.unprobed = False


def probe_bounds(state: SlotState, grad: torch.Tensor, oracle: Oracle) -> None:
    """Mark what the gradient, at the iterate in `state`, says of each sample at either bound."""
    if oracle.bounds is None or oracle.inset:
        return
    kept, lost = clamping.evidence(grad, state.x_adv.detach(), oracle.bounds)
    marks = kept[0] * columns.KEPT_AT_LOW + kept[1] * columns.KEPT_AT_HIGH
    marks += lost[0] * columns.LOST_AT_LOW + lost[1] * columns.LOST_AT_HIGH
    state.slots[:, columns.FAULT] |= marks.int()
