"""Sigma-zero's step as an op: verdict on the last point, its threshold, the next point."""

from collections.abc import Sequence

import torch

from fastadv.ops import layout, registry
from fastadv.ops.fab.step import check_rows, dense_as
from fastadv.ops.nearest import sparse_reference as reference
from fastadv.ops.nearest.radius import check_slots
from fastadv.ops.steps import arguments as step_arguments

SCHEDULE = 3  # numbers of a step
_FLOATS = (torch.float32, torch.float64)


def _launch(*arguments) -> None:
    registry.kernels("nearest.sparse").launch_sigma_zero_step(*arguments)


_STEP = registry.register(
    "sigma_zero_step_(Tensor(a!) x_adv, Tensor(b!) closest, Tensor grad, Tensor x, "
    "Tensor(c!) mean, Tensor(d!) square, Tensor loss, Tensor prediction, Tensor aims, "
    "Tensor(e!) distance, Tensor(f!) threshold, Tensor(g!) slots, Tensor eps, Tensor schedule, "
    "float lo, float hi, float unit, float smoothing, bool targeted, bool stop_early) -> ()",
    reference=reference.sigma_zero_step,
    compiled="nearest.loops_sparse",
    launch=_launch,
    shared=("schedule",),
    tolerance=1e-5,
)


def sigma_zero_step_(
    x_adv: torch.Tensor,
    closest: torch.Tensor,
    grad: torch.Tensor,
    x: torch.Tensor,
    *,
    mean: torch.Tensor,
    square: torch.Tensor,
    loss: torch.Tensor,
    prediction: torch.Tensor,
    aims: torch.Tensor,
    distance: torch.Tensor,
    threshold: torch.Tensor,
    slots: torch.Tensor,
    eps: torch.Tensor,
    schedule: torch.Tensor,
    unit: float = 1.0,
    smoothing: float = 1e-3,
    bounds: Sequence[float] | None = (0.0, 1.0),
    targeted: bool = False,
    stop_early: bool = False,
) -> None:
    """One step of sigma-zero, in place: of d = (x_adv - x) / unit by Adam along the gradient g of
    max(-loss, 0) + mean(d^2 / (d^2 + smoothing)), over max |g|; clipped to bounds, and then x where
    |d| is below the threshold.

    x_adv: (B, ...), the point just evaluated; loss: (B,), the margin max_{j != y} z_j - z_y there
    (targeted z_t - max_{j != t} z_j), and grad its gradient. closest, prediction, aims, distance,
    slots, eps, targeted, stop_early: as in `radius_step_`; distances count entries. mean, square:
    Adam's, as x, in the compute dtype. threshold: (B,), compute dtype, rises by schedule[2] after
    an adversarial point and falls by it after another one, within [0, 1]. schedule: (3, steps) of
    each step: the step size over Adam's first correction, the inverse root of its second, the
    change of the threshold. What is not finite in a gradient counts as 0. One launch. Raises
    ValueError if shapes, dtypes, devices or layouts do not fit.

    Example: `sigma_zero_step_(x_adv, closest, grad, x, mean=mean, square=square, loss=loss,
    prediction=prediction, aims=y, distance=distance, threshold=threshold, slots=slots, eps=eps,
    schedule=schedule)`.
    Source: Cina et al. 2024, arXiv:2402.01879.
    """
    lo, hi = step_arguments.check_bounds(bounds)
    step_arguments.check_step_tensors(x_adv, grad, x)
    memory_format = dense_as(x_adv, "x_adv", closest=closest)
    dtype = layout.compute_dtype(x_adv)
    for name, state in (("mean", mean), ("square", square)):
        if (state.shape, state.dtype) != (x_adv.shape, dtype) or not layout.is_dense_as(
            state, memory_format
        ):
            raise ValueError(
                f"{name} must be {tuple(x_adv.shape)} {dtype}, dense in the layout of x_adv; got "
                f"{tuple(state.shape)} {state.dtype}"
            )
    classes = (torch.int64, torch.int32)
    check_rows(
        x_adv,
        loss=(loss, _FLOATS),
        prediction=(prediction, classes),
        aims=(aims, classes),
        distance=(distance, (dtype,)),
        threshold=(threshold, (dtype,)),
        eps=(eps, _FLOATS),
    )
    check_slots(x_adv, slots)
    if schedule.ndim != 2 or len(schedule) != SCHEDULE or schedule.dtype != dtype:
        raise ValueError(
            f"schedule must be ({SCHEDULE}, steps) {dtype}; got {tuple(schedule.shape)} "
            f"{schedule.dtype}"
        )
    _STEP(
        x_adv,
        closest,
        layout.in_format(grad, memory_format),
        layout.in_format(x, memory_format),
        mean,
        square,
        loss,
        prediction,
        aims,
        distance,
        threshold,
        slots,
        eps,
        schedule.contiguous(),
        lo,
        hi,
        unit,
        smoothing,
        targeted,
        stop_early,
    )
