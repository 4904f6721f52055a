"""FAB's step as an op: verdict on the last point, projections, the next point; and its candidates.

Every round of the engine evaluates x_adv (forward, loss head "difference", backward), then runs
`fab_step_`; the untargeted attack runs `fab_nearest_` once a class before it.
"""

from collections.abc import Sequence
from typing import NoReturn

import torch

from fastadv.kernels import slots as slot_columns
from fastadv.ops import layout, registry
from fastadv.ops.fab import cpu as fab_cpu
from fastadv.ops.fab import reference as fab_reference
from fastadv.ops.fab.projection import check_norm
from fastadv.ops.steps import arguments as step_arguments


def _launch_step(*arguments) -> None:
    registry.kernels("fab.step").launch_fab_step(*arguments)


def _launch_nearest(*arguments) -> None:
    registry.kernels("fab.nearest").launch_fab_nearest(*arguments, guard=fab_reference.GUARD)


_STEP = registry.register(
    "fab_step_(Tensor(a!) x_adv, Tensor(b!) closest, Tensor? grad, Tensor x, Tensor difference, "
    "Tensor prediction, Tensor labels, Tensor(c!) distance, Tensor(d!) pulled_back, "
    "Tensor(e!) slots, Tensor eps, float lo, float hi, str norm, int steps, bool stop_early, "
    "float alpha_max, float eta, float beta) -> ()",
    reference=fab_reference.fab_step,
    cpu=fab_cpu.fab_step,
    compiled="fab.loops",
    launch=_launch_step,
    tolerance=1e-4,  # in L1 of 192 elements 2^-22 * 192 = 4.6e-5 for each of the two
)
_NEAREST = registry.register(
    "fab_nearest_(Tensor(a!) grad_nearest, Tensor(b!) difference_nearest, Tensor(c!) ratio, "
    "Tensor grad, Tensor difference, Tensor labels, int candidate, str norm) -> ()",
    reference=fab_reference.fab_nearest,
    cpu=fab_cpu.fab_nearest,
    compiled="fab.loops",
    launch=_launch_nearest,
    tolerance=1e-6,
)


def dense_as(first: torch.Tensor, name: str, **others: torch.Tensor) -> torch.memory_format:
    """The dense layout that `first` and all others, which are written, have in common."""
    memory_format = layout.dense_format(first)
    if memory_format is None:
        _refuse_layout(name, first, name)
    shape, dtype, device = first.shape, first.dtype, first.device
    for other_name, other in others.items():
        if other.shape != shape or other.dtype != dtype or other.device != device:
            raise ValueError(
                f"{other_name} must match {name}: {tuple(shape)} {dtype} on {device}; got "
                f"{tuple(other.shape)} {other.dtype} on {other.device}"
            )
        if not layout.is_dense_as(other, memory_format):
            _refuse_layout(other_name, other, name)
    return memory_format


def _refuse_layout(name: str, tensor: torch.Tensor, like: str) -> NoReturn:
    raise ValueError(
        f"{name} must be dense in the layout of {like}; got shape {tuple(tensor.shape)} with "
        f"strides {tensor.stride()}"
    )


def check_rows(x_adv: torch.Tensor, **rows: tuple[torch.Tensor, tuple[torch.dtype, ...]]) -> None:
    shape, device = x_adv.shape[:1], x_adv.device
    for name, (value, dtypes) in rows.items():
        if value.shape != shape or value.device != device or value.dtype not in dtypes:
            raise ValueError(
                f"{name} must be ({len(x_adv)},) {dtypes[0]} on {device}; got "
                f"{tuple(value.shape)} {value.dtype} on {value.device}"
            )
        if not value.is_contiguous():
            raise ValueError(f"{name} must be contiguous; got strides {value.stride()}")


_INTEGERS = (torch.int64, torch.int32)
_FLOATS = (torch.float32, torch.float64)


def fab_step_(
    x_adv: torch.Tensor,
    closest: torch.Tensor,
    grad: torch.Tensor | None,
    x: torch.Tensor,
    *,
    difference: torch.Tensor,
    prediction: torch.Tensor,
    labels: torch.Tensor,
    distance: torch.Tensor,
    pulled_back: torch.Tensor,
    slots: torch.Tensor,
    eps: torch.Tensor,
    bounds: Sequence[float] | None = (0.0, 1.0),
    norm: str,
    steps: int,
    stop_early: bool,
    alpha_max: float = 0.1,
    eta: float = 1.05,
    beta: float = 0.9,
) -> None:
    """One step of FAB, in place: with d1, d2 the projections of x_adv and x onto the hyperplane
    difference + grad . (z - x_adv) = 0 in the box, and alpha = min(|d1| / (|d1| + |d2|),
    alpha_max), x_adv = clip((x_adv + eta * d1) * (1 - alpha) + (x + eta * d2) * alpha).

    x_adv: (B, ...), the point just evaluated; difference: (B,), the model's z_target - z_label
    there, and grad its gradient; prediction, labels: (B,) integers. x: the clean input. Only rows
    with slots[ACTIVE] move; slots[STEP] counts their projections, 0 at the start.

    1. A point that was moved, not pulled back, and is adversarial: closest, distance keep it if it
       is nearer than `distance` (B,), inf at the start. SUCCESS_STEP becomes STEP at the first one
       within eps (B,). With stop_early such a row ends here; every row ends at STEP == steps;
       otherwise x_adv = x + beta * (x_adv - x), pulled_back (B,) bool becomes True.
    2. Any other point at STEP == steps: the row ends, its x_adv stays.
    3. Any other point: the step above; pulled_back becomes False and STEP rises by one. Without
       grad the point is only looked at, and stays.

    A NaN difference sets FAULT_NAN_LOGITS, is not adversarial and has no gradient; what is not
    finite in grad counts as 0. x_adv, closest, grad, x: same shape, dtype and device; distance in
    the compute dtype. Raises ValueError if shapes, dtypes, devices or layouts do not fit.

    The value at x is difference + grad . (x - x_adv), and at x_adv the difference itself: b, which
    the authors form first, would cancel digits of both. Called once with grad and once without a
    step, as they do, it takes one forward more; called with grad alone, points that were not
    adversarial need no second forward, but those that were are evaluated anew, with a backward.

    Example: `fab_step_(x_adv, closest, grad, x, difference=loss, prediction=prediction,
    labels=y, distance=distance, pulled_back=pulled_back, slots=slots, eps=eps, norm="linf",
    steps=100, stop_early=True)`.
    Source: Croce and Hein 2020, arXiv:1907.02044, algorithm 1.
    """
    check_norm(norm)
    lo, hi = step_arguments.check_bounds(bounds)
    step_arguments.check_step_tensors(x_adv, x if grad is None else grad, x)
    memory_format = dense_as(x_adv, "x_adv", closest=closest)
    check_rows(
        x_adv,
        difference=(difference, _FLOATS),
        prediction=(prediction, _INTEGERS),
        labels=(labels, _INTEGERS),
        distance=(distance, (layout.compute_dtype(x_adv),)),
        pulled_back=(pulled_back, (torch.bool,)),
        eps=(eps, _FLOATS),
    )
    expected = (x_adv.shape[0], slot_columns.WIDTH), torch.int32
    if (slots.shape, slots.dtype) != expected or not slots.is_contiguous():
        raise ValueError(
            f"slots must be ({len(x_adv)}, {slot_columns.WIDTH}) int32 and contiguous; got "
            f"{tuple(slots.shape)} {slots.dtype} with strides {slots.stride()}"
        )
    grad = None if grad is None else layout.in_format(grad, memory_format)
    x = layout.in_format(x, memory_format)
    _STEP(
        x_adv,
        closest,
        grad,
        x,
        difference,
        prediction,
        labels,
        distance,
        pulled_back,
        slots,
        eps,
        lo,
        hi,
        norm,
        steps,
        stop_early,
        alpha_max,
        eta,
        beta,
    )


def fab_nearest_(
    grad_nearest: torch.Tensor,
    difference_nearest: torch.Tensor,
    ratio: torch.Tensor,
    grad: torch.Tensor,
    difference: torch.Tensor,
    labels: torch.Tensor,
    candidate: int,
    *,
    norm: str,
) -> None:
    """Take over class `candidate` where its boundary is the nearest so far, in place:
    |difference| / (||grad||_dual + 1e-12) < ratio, dual being L1 for "linf", L2, and max for "l1".

    grad: (B, ...), the gradient of difference = z_candidate - z_label, (B,). grad_nearest,
    difference_nearest, ratio (in the compute dtype): what is known so far; fill ratio with inf
    before the first class. Rows whose label is the candidate, and those whose difference is NaN,
    take nothing over: where no class can be taken, grad_nearest and difference_nearest stay, so
    fill difference_nearest with NaN to have `fab_step_` report it. Ties go to the first class. One
    launch. Raises ValueError if shapes, dtypes, devices or layouts do not fit.

    Example: `fab_nearest_(w, value, ratio, grad, difference, y, 3, norm="linf")`.
    Source: Croce and Hein 2020, arXiv:1907.02044, equation 7.
    """
    check_norm(norm)
    memory_format = dense_as(grad_nearest, "grad_nearest")
    if (grad.shape, grad.dtype, grad.device) != (
        grad_nearest.shape,
        grad_nearest.dtype,
        grad_nearest.device,
    ):
        raise ValueError(
            f"grad must match grad_nearest: {tuple(grad_nearest.shape)} {grad_nearest.dtype} on "
            f"{grad_nearest.device}; got {tuple(grad.shape)} {grad.dtype} on {grad.device}"
        )
    check_rows(
        grad,
        difference_nearest=(difference_nearest, (difference.dtype,)),
        ratio=(ratio, (layout.compute_dtype(grad),)),
        difference=(difference, _FLOATS),
        labels=(labels, _INTEGERS),
    )
    _NEAREST(
        grad_nearest,
        difference_nearest,
        ratio,
        layout.in_format(grad, memory_format),
        difference,
        labels,
        candidate,
        norm,
    )
