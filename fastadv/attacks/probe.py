"""Looks at the first gradient of a sample: zero, NaN, or lost at the bounds, it says something."""

import torch

from fastadv import clamping
from fastadv.engine.state import SlotState
from fastadv.gradient import Oracle
from fastadv.kernels import slots as columns

# slots that tell for all whether the model clamps: all of 128 MNIST images would take a tenth of a
# step on a CPU
_ENOUGH = 32


def probe(state: SlotState, grad: torch.Tensor, oracle: Oracle) -> None:
    """Both looks, before the step is made with `grad`; once a load."""
    probe_bounds(state, grad, oracle)
    probe_masked(state, grad)


def probe_masked(state: SlotState, grad: torch.Tensor) -> None:
    """Mark samples, not fooled yet, whose first gradient is zero or has NaN."""
    rows = grad.detach().reshape(len(grad), -1)
    first = (state.slots[:, columns.STEP] == 1) & (state.slots[:, columns.ACTIVE] == 1)
    # beyond kappa the margin loss is flat by definition, which masks nothing
    first &= state.correct if state.targets is None else state.prediction != state.targets
    zero = first & ~(rows != 0).any(1)
    nan = first & rows.isnan().any(1)
    state.slots[:, columns.FAULT] |= (
        zero * columns.FAULT_ZERO_GRADIENT + nan * columns.FAULT_NAN_GRADIENT
    ).int()
    state.unprobed = False


def probe_bounds(state: SlotState, grad: torch.Tensor, oracle: Oracle) -> None:
    """Mark some samples whose gradient, at the iterate in `state`, tells what becomes of it at the
    bounds, and those where it is lost there."""
    if oracle.bounds is None or oracle.inset:
        return
    some = slice(_ENOUGH)
    telling, lost = clamping.evidence(grad[some], state.x_adv.detach()[some], oracle.bounds)
    marks = telling * columns.BOUNDS_TELL + lost * columns.BOUNDS_LOSE
    state.slots[some, columns.FAULT] |= marks.int()
