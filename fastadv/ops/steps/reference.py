"""What the steps of the three norms share in eager torch: the direction, momentum, the store."""

import torch

from fastadv.kernels import slots as slot_columns
from fastadv.ops import layout, reduction, rounding
from fastadv.ops.steps import box as boxes
from fastadv.ops.steps.arguments import StepCall


def direction_of(
    call: StepCall, box: torch.Tensor | None = None, *, in_units: bool = False
) -> torch.Tensor:
    """dL/dx_adv with NaN as 0; with momentum m, updated, instead.

    `grad` is dL/dmodel_input where there is a model input. Elements that the box holds where they
    are have none; in_units: the gradient is that of x_adv / unit.
    """
    grad = call.grad.to(layout.compute_dtype(call.x_adv))
    if call.model_input is not None and call.std is not None:
        grad = grad / layout.per_channel(call.std, call.x_adv)
    grad = grad.masked_fill(grad.isnan(), 0.0)
    if box is not None:
        grad = boxes.movable(grad, box, call.x_adv)
        unit = boxes.unit_of(box, call.x_adv)
        grad = grad * unit if in_units and unit is not None else grad
    return grad if call.momentum is None else _updated(call.momentum, grad, call)


def _updated(momentum: torch.Tensor, grad: torch.Tensor, call: StepCall) -> torch.Tensor:
    """m = decay * m + g / mean|g|, unrounded; written back for active rows.

    0/0 and inf/inf add nothing.
    """
    rows = grad.contiguous().view(len(grad), -1) if grad.numel() else grad.new_zeros(len(grad), 1)
    mean_abs = rounding.divided(reduction.tree_sum(rows.abs()), rows.shape[1])
    unit = grad / mean_abs.view(-1, *[1] * (grad.ndim - 1))
    updated = call.decay * momentum.to(grad.dtype) + unit.masked_fill(unit.isnan(), 0.0)
    if call.slots is None:
        momentum.copy_(updated)
    else:
        active = _active_rows(call.slots, grad)
        momentum.copy_(torch.where(active, updated.to(momentum.dtype), momentum))
    return updated


def store(call: StepCall, moved: torch.Tensor) -> None:
    """Write `moved` into the active rows of x_adv, and their normalised copy into model_input."""
    x_adv, slots, model_input = call.x_adv, call.slots, call.model_input
    stored = moved.to(x_adv.dtype)
    if slots is not None:
        torch.where(_active_rows(slots, x_adv), stored, x_adv, out=x_adv)
        stored = x_adv
    else:
        x_adv.copy_(stored)
    if model_input is not None and call.mean is not None and call.std is not None:
        value = stored.to(layout.compute_dtype(x_adv))
        value = value - layout.per_channel(call.mean, x_adv)
        value = (value / layout.per_channel(call.std, x_adv)).to(model_input.dtype)
        if slots is not None:
            value = torch.where(_active_rows(slots, x_adv), value, model_input)
        model_input.copy_(value)


def _active_rows(slots: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return slots[:, slot_columns.ACTIVE].bool().view(-1, *[1] * (like.ndim - 1))
