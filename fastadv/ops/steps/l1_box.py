"""The sparse L1 step of elements that are not alike: the plain step, with torch around it."""

from typing import Any

import torch

from fastadv.kernels import box as planes
from fastadv.ops import layout
from fastadv.ops.steps import box as boxes
from fastadv.ops.steps.l1 import l1_step_


@torch.no_grad()
def l1_step_in_box_(
    x_adv: torch.Tensor,
    grad: torch.Tensor,
    x: torch.Tensor,
    *,
    box: torch.Tensor,
    in_units: bool,
    bounds: tuple[float, float] | None,
    clamps: bool,
    model_input: torch.Tensor | None = None,
    mean: torch.Tensor | None = None,
    std: torch.Tensor | None = None,
    **more: Any,
) -> torch.Tensor:
    """`l1_step_` where elements have a box, in place.

    box: (B, 3, D) of x_adv, which is dense; an element of unit 0 stays where it is, at x, and its
    gradient counts as 0. in_units: the step is that of (x_adv - x) / unit, with its gradient and
    lengths. clamps: to the bounds of the box, behind the projection onto the ball: it brings
    elements nearer to x, so that the ball is not left. Otherwise bounds are those of all elements,
    and the projection is the exact one onto both. The rest as in `l1_step_`.
    """
    unit = boxes.plane(box, planes.UNIT, x_adv)
    own_bounds = in_units or clamps
    normalised = dict(model_input=model_input, mean=mean, std=std)
    if own_bounds and model_input is not None and std is not None:
        grad = grad / layout.per_channel(std, x_adv)
    if in_units:
        _step_in_units_(x_adv, grad.to(unit.dtype) * unit, x, unit, **more)
    elif own_bounds:
        l1_step_(x_adv, (grad * unit).to(x_adv.dtype), x, bounds=None, **more)
    else:
        masked = (grad * unit).to(grad.dtype)
        return l1_step_(x_adv, masked, x, bounds=bounds, **normalised, **more)
    torch.clamp(x_adv.detach(), *boxes.bounds_of(box, x_adv), out=x_adv.detach())
    if model_input is not None and mean is not None and std is not None:
        value = x_adv.to(unit.dtype) - layout.per_channel(mean, x_adv)
        model_input.copy_(value / layout.per_channel(std, x_adv))
    return x_adv


def _step_in_units_(
    x_adv: torch.Tensor, grad: torch.Tensor, x: torch.Tensor, unit: torch.Tensor, **more: Any
) -> None:
    """Of (x_adv - x) / unit; what does not move keeps its bits, as rows do that are done."""
    wide = x.to(unit.dtype)
    scaled = torch.where(unit > 0, (x_adv - wide) / unit, 0.0)
    moved = l1_step_(scaled.clone(), grad, torch.zeros_like(scaled), bounds=None, **more)
    x_adv.copy_(torch.where(moved == scaled, x_adv, wide + moved * unit))
