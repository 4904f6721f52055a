"""What the steps of the three norms have in common: their schema, checks and reference parts."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from fastadv.kernels import slots as slot_columns
from fastadv.ops import layout

# float/Tensor pairs: the (B,) tensor wins where given. Trailing arguments of every in-place step.
STEP_SCHEMA = (
    "float step_size, Tensor? step_rows, float eps, Tensor? eps_rows, float lo, float hi, "
    "Tensor? slots, Tensor(b!)? momentum, float decay, "
    "Tensor(c!)? model_input, Tensor? mean, Tensor? std"
)


class ScalarOrRows(NamedTuple):
    """A step parameter as the ops take it: a float, and a (B,) tensor that overrides it."""

    scalar: float
    rows: torch.Tensor | None


def scalar_or_rows(name: str, value: float | torch.Tensor, x: torch.Tensor) -> ScalarOrRows:
    """Split `value` for the op; raises ValueError unless it is a float or a (B,) tensor."""
    if not isinstance(value, torch.Tensor):
        return ScalarOrRows(float(value), None)
    if value.ndim == 0:
        value = value.expand(x.shape[0])
    if value.shape != x.shape[:1] or value.device != x.device:
        raise ValueError(
            f"{name} must be a float or a ({x.shape[0]},) tensor on {x.device}; got shape "
            f"{tuple(value.shape)} on {value.device}"
        )
    return ScalarOrRows(0.0, value.to(layout.compute_dtype(x)).contiguous())


def check_step_tensors(x_adv: torch.Tensor, grad: torch.Tensor, x: torch.Tensor) -> None:
    for name, other in (("grad", grad), ("x", x)):
        if (other.shape, other.dtype, other.device) != (x_adv.shape, x_adv.dtype, x_adv.device):
            raise ValueError(
                f"{name} must match x_adv: {tuple(x_adv.shape)} {x_adv.dtype} on {x_adv.device}; "
                f"got {tuple(other.shape)} {other.dtype} on {other.device}"
            )
    if not x_adv.is_floating_point():
        raise TypeError(f"x_adv must be a floating-point tensor; got {x_adv.dtype}")


def check_bounds(bounds: Sequence[float] | None) -> tuple[float, float]:
    """(lo, hi); None is (-inf, inf). Raises ValueError unless lo < hi."""
    if bounds is None:
        return float("-inf"), float("inf")
    lo, hi = (float(bound) for bound in bounds)
    if not lo < hi:
        raise ValueError(f"bounds must be (lo, hi) with lo < hi; got {tuple(bounds)}")
    return lo, hi


def reference_grad(
    grad: torch.Tensor,
    x_adv: torch.Tensor,
    model_input: torch.Tensor | None,
    std: torch.Tensor | None,
) -> torch.Tensor:
    """dL/dx_adv with NaN as 0; `grad` is dL/dmodel_input where there is a model input."""
    grad = grad.to(layout.compute_dtype(x_adv))
    if model_input is not None and std is not None:
        grad = grad / layout.per_channel(std, x_adv)
    return grad.masked_fill(grad.isnan(), 0.0)


def reference_store(
    x_adv: torch.Tensor,
    moved: torch.Tensor,
    slots: torch.Tensor | None,
    model_input: torch.Tensor | None,
    mean: torch.Tensor | None,
    std: torch.Tensor | None,
) -> None:
    """Write `moved` into the active rows of x_adv, and their normalised copy into model_input."""
    stored = moved.to(x_adv.dtype)
    if slots is not None:
        torch.where(active_rows(slots, x_adv), stored, x_adv, out=x_adv)
        stored = x_adv
    else:
        x_adv.copy_(stored)
    if model_input is not None and mean is not None and std is not None:
        value = stored.to(layout.compute_dtype(x_adv))
        value = (value - layout.per_channel(mean, x_adv)) / layout.per_channel(std, x_adv)
        value = value.to(model_input.dtype)
        if slots is not None:
            value = torch.where(active_rows(slots, x_adv), value, model_input)
        model_input.copy_(value)


def active_rows(slots: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return slots[:, slot_columns.ACTIVE].bool().view(-1, *[1] * (like.ndim - 1))


def reference_momentum(
    momentum: torch.Tensor,
    grad: torch.Tensor,
    mean_abs: torch.Tensor,
    decay: float,
    slots: torch.Tensor | None,
) -> torch.Tensor:
    """m = decay * m + g / mean|g|, written back for active rows; 0/0 and inf/inf add nothing."""
    unit = grad / mean_abs.view(-1, *[1] * (grad.ndim - 1))
    updated = decay * momentum.to(grad.dtype) + unit.masked_fill(unit.isnan(), 0.0)
    if slots is None:
        momentum.copy_(updated)
    else:
        momentum.copy_(torch.where(active_rows(slots, grad), updated.to(momentum.dtype), momentum))
    return updated


def launch_layout(x_adv: torch.Tensor, model_input: torch.Tensor | None) -> dict[str, object]:
    """Layout arguments of a launch: inner extent, and whether model_input has the other layout."""
    memory_format = layout.dense_format(x_adv)
    assert memory_format is not None, "the public wrappers make every step tensor dense"
    return dict(
        inner=layout.inner_extent(x_adv, memory_format),
        cross=model_input is not None and not layout.is_dense_as(model_input, memory_format),
        channels_last=memory_format is not torch.contiguous_format,
    )


def step_in_place(
    op: Callable[..., None],
    x_adv: torch.Tensor,
    grad: torch.Tensor,
    x: torch.Tensor,
    step_size: float | torch.Tensor,
    eps: float | torch.Tensor,
    bounds: Sequence[float] | None,
    slots: torch.Tensor | None,
    momentum: torch.Tensor | None,
    decay: float,
    model_input: torch.Tensor | None,
    mean: torch.Tensor | None,
    std: torch.Tensor | None,
    *more: float | torch.Tensor | None,
) -> torch.Tensor:
    """Check the arguments, give every tensor x_adv's dense layout, call `op` and return x_adv."""
    lo, hi = check_bounds(bounds)
    step = scalar_or_rows("step_size", step_size, x)
    radius = scalar_or_rows("eps", eps, x)
    if model_input is None:
        check_step_tensors(x_adv, grad, x)
    else:
        _check_model_input(x_adv, grad, x, model_input, mean, std)
    _check_state(x_adv, slots, momentum)
    memory_format = layout.dense_format(x_adv)
    if memory_format is None:
        dense = x_adv.contiguous()
        step_in_place(
            op,
            dense,
            grad,
            x,
            step_size,
            eps,
            bounds,
            slots,
            momentum,
            decay,
            model_input,
            mean,
            std,
            *more,
        )
        return x_adv.copy_(dense)
    x = layout.in_format(x, memory_format)
    like_grad = memory_format if model_input is None else layout.dense_format(model_input)
    assert like_grad is not None, "checked above"
    grad = layout.in_format(grad, like_grad)
    op(
        x_adv,
        grad,
        x,
        *step,
        *radius,
        lo,
        hi,
        slots,
        momentum,
        decay,
        model_input,
        mean,
        std,
        *more,
    )
    return x_adv


def _check_model_input(
    x_adv: torch.Tensor,
    grad: torch.Tensor,
    x: torch.Tensor,
    model_input: torch.Tensor,
    mean: torch.Tensor | None,
    std: torch.Tensor | None,
) -> None:
    check_step_tensors(x_adv, x_adv, x)
    if x_adv.ndim < 2 or mean is None or std is None:
        raise ValueError("model_input needs mean and std, (C,) each, and x_adv of (B, C, ...)")
    for name, value in (("mean", mean), ("std", std)):
        if value.shape != x_adv.shape[1:2]:
            raise ValueError(
                f"{name} must have shape ({x_adv.shape[1]},); got {tuple(value.shape)}"
            )
    if model_input.shape != x_adv.shape or layout.dense_format(model_input) is None:
        raise ValueError(
            f"model_input must be dense and of x_adv's shape {tuple(x_adv.shape)}; got "
            f"{tuple(model_input.shape)} with strides {model_input.stride()}"
        )
    if (grad.shape, grad.dtype) != (model_input.shape, model_input.dtype):
        raise ValueError(
            f"grad must match model_input, {tuple(model_input.shape)} {model_input.dtype}: it is "
            f"the gradient with respect to it; got {tuple(grad.shape)} {grad.dtype}"
        )


def _check_state(
    x_adv: torch.Tensor, slots: torch.Tensor | None, momentum: torch.Tensor | None
) -> None:
    if slots is not None and (slots.shape, slots.dtype) != (
        (x_adv.shape[0], slot_columns.WIDTH),
        torch.int32,
    ):
        raise ValueError(
            f"slots must be ({x_adv.shape[0]}, {slot_columns.WIDTH}) int32; got "
            f"{tuple(slots.shape)} {slots.dtype}"
        )
    if momentum is not None and (
        momentum.shape != x_adv.shape or momentum.stride() != x_adv.stride()
    ):
        raise ValueError(
            f"momentum must have x_adv's shape and strides {tuple(x_adv.shape)}, {x_adv.stride()}; "
            f"got {tuple(momentum.shape)}, {momentum.stride()}"
        )
