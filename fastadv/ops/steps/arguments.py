"""The arguments that the steps of the three norms share: their schema, checks and layouts."""

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


class StepCall(NamedTuple):
    """The arguments of a step's op, by position; those of `linf_step` end with hi."""

    x_adv: torch.Tensor
    grad: torch.Tensor
    x: torch.Tensor
    step_size: float
    step_rows: torch.Tensor | None
    eps: float
    eps_rows: torch.Tensor | None
    lo: float
    hi: float
    slots: torch.Tensor | None = None
    momentum: torch.Tensor | None = None
    decay: float = 1.0
    model_input: torch.Tensor | None = None
    mean: torch.Tensor | None = None
    std: torch.Tensor | None = None


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


def reach(
    step_size: float | torch.Tensor,
    eps: float | torch.Tensor,
    bounds: Sequence[float] | None,
    x: torch.Tensor,
) -> tuple[float, torch.Tensor | None, float, torch.Tensor | None, float, float]:
    """(step_size, step_rows, eps, eps_rows, lo, hi) of a StepCall; raises ValueError."""
    lo, hi = check_bounds(bounds)
    if type(step_size) is float and type(eps) is float:  # isinstance of a Tensor is python code
        return step_size, None, eps, None, lo, hi
    step_size, step_rows = scalar_or_rows("step_size", step_size, x)
    eps, eps_rows = scalar_or_rows("eps", eps, x)
    return step_size, step_rows, eps, eps_rows, lo, hi


def check_step_tensors(x_adv: torch.Tensor, grad: torch.Tensor, x: torch.Tensor) -> None:
    shape, dtype, device = x_adv.shape, x_adv.dtype, x_adv.device
    for name, other in (("grad", grad), ("x", x)):
        if other.shape != shape or other.dtype != dtype or other.device != device:
            raise ValueError(
                f"{name} must match x_adv: {tuple(x_adv.shape)} {x_adv.dtype} on {x_adv.device}; "
                f"got {tuple(other.shape)} {other.dtype} on {other.device}"
            )
    if not dtype.is_floating_point:
        raise TypeError(f"x_adv must be a floating-point tensor; got {dtype}")


def check_bounds(bounds: Sequence[float] | None) -> tuple[float, float]:
    """(lo, hi); None is (-inf, inf). Raises ValueError unless lo < hi."""
    if bounds is None:
        return float("-inf"), float("inf")
    low, high = bounds
    lo, hi = float(low), float(high)
    if not lo < hi:
        raise ValueError(f"bounds must be (lo, hi) with lo < hi; got {tuple(bounds)}")
    return lo, hi


def dense_copy(x_adv: torch.Tensor) -> torch.Tensor:
    """A copy that a step may write, in x_adv's dense layout if it has one."""
    memory_format = layout.dense_format(x_adv) or torch.contiguous_format
    return x_adv.detach().clone(memory_format=memory_format)


_NO_MODEL_INPUT: dict[str, object] = dict(inner=1, cross=False, channels_last=False)


def launch_layout(call: StepCall) -> dict[str, object]:
    """Layout arguments of a launch: inner extent, and whether model_input has the other layout.

    Only the model input has channels: without one, kernels look at none of them.
    """
    model_input = call.model_input
    if model_input is None:
        return _NO_MODEL_INPUT
    memory_format = layout.dense_format(call.x_adv)
    assert memory_format is not None, "the public wrappers make every step tensor dense"
    return dict(
        inner=layout.inner_extent(call.x_adv, memory_format),
        cross=not layout.is_dense_as(model_input, memory_format),
        channels_last=memory_format is not torch.contiguous_format,
    )


def step_in_place(
    op: Callable[..., None], call: StepCall, *more: float | torch.Tensor | None
) -> torch.Tensor:
    """Check `call`, give every tensor x_adv's dense layout, run `op` on it and return x_adv.

    more: what the op takes behind the arguments that all steps share.
    """
    x_adv, grad, x = call.x_adv, call.grad, call.x
    model_input = call.model_input
    if model_input is None:
        check_step_tensors(x_adv, grad, x)
    else:
        _check_model_input(call, model_input)
    _check_state(x_adv, call.slots, call.momentum)
    memory_format = layout.dense_format(x_adv)
    if memory_format is None:
        dense = x_adv.contiguous()
        step_in_place(op, call._replace(x_adv=dense), *more)
        return x_adv.copy_(dense)
    x = layout.in_format(x, memory_format)
    like_grad = memory_format if model_input is None else layout.dense_format(model_input)
    assert like_grad is not None, "checked above"
    op(x_adv, layout.in_format(grad, like_grad), x, *call[3:], *more)
    return x_adv


def _check_model_input(call: StepCall, model_input: torch.Tensor) -> None:
    x_adv, grad = call.x_adv, call.grad
    check_step_tensors(x_adv, x_adv, call.x)
    if x_adv.ndim < 2 or call.mean is None or call.std is None:
        raise ValueError("model_input needs mean and std, (C,) each, and x_adv of (B, C, ...)")
    for name, value in (("mean", call.mean), ("std", call.std)):
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
