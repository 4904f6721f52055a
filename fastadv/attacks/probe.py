"""Looks at the first gradient of a sample: a zero or NaN there is a masked gradient."""

import torch

from fastadv.engine.state import SlotState
from fastadv.kernels import slots as columns


def probe(state: SlotState, grad: torch.Tensor) -> None:
    """Mark samples, not fooled yet, whose first gradient is zero or has NaN; once a load."""
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
