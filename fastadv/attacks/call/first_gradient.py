"""Looks at the first gradient of a sample: zero, NaN, or lost at the bounds, it says something."""

import math

import numpy as np
import torch

from fastadv.engine.state import SlotState
from fastadv.kernels import slots as columns
from fastadv.ops import registry
from fastadv.ops.steps import box as boxes
from fastadv.oracle import clamping
from fastadv.oracle.gradient import Oracle


def _looks_on_host(state: SlotState, grad: torch.Tensor, oracle: Oracle) -> bool:
    """Whether a look may decide on the host what there is to be looked at: on a CPU, which need not
    be waited for, and in no step that is recorded."""
    may = state.box is None and not oracle.is_recorded
    return may and registry.takes_cpu_path(grad) and not grad.is_neg()


def probe(state: SlotState, grad: torch.Tensor, oracle: Oracle) -> None:
    """Both looks, before the step is made with `grad`; once a load."""
    probe_bounds(state, grad, oracle)
    probe_masked(state, grad, oracle)


def probe_masked(state: SlotState, grad: torch.Tensor, oracle: Oracle) -> None:
    """Mark samples, not fooled yet, whose first gradient is zero or has NaN."""
    state.unprobed = False
    grad = grad.detach()
    if _looks_on_host(state, grad, oracle) and _is_unmasked(grad):
        return
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


def probe_bounds(state: SlotState, grad: torch.Tensor, oracle: Oracle) -> None:
    """Mark what the gradient, at the iterate in `state`, says of each sample at either bound."""
    if oracle.bounds is None or oracle.inset:
        return
    x_adv = state.x_adv.detach()
    is_on_host = _looks_on_host(state, grad, oracle)
    if is_on_host and clamping.is_inside(x_adv, oracle.bounds):
        return
    look = clamping.evidence_on_host if is_on_host else clamping.evidence
    kept, lost = look(grad, x_adv, oracle.bounds)
    marks = kept[0] * columns.KEPT_AT_LOW + kept[1] * columns.KEPT_AT_HIGH
    marks += lost[0] * columns.LOST_AT_LOW + lost[1] * columns.LOST_AT_HIGH
    state.slots[:, columns.FAULT] |= marks.int()


def _is_unmasked(grad: torch.Tensor) -> bool:
    """Whether it is clear at once that no row of a gradient on the CPU is zero or has NaN."""
    rows = grad.numpy().reshape(len(grad), -1)
    with np.errstate(invalid="ignore", over="ignore"):
        is_finite = math.isfinite(rows.sum())
    return is_finite and bool((rows != 0).any(axis=1).all())
