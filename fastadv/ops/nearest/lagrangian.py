"""ALMA's step as an op: verdict on the last point, its multipliers, the next point."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from fastadv.ops import layout, registry
from fastadv.ops.fab.step import check_rows, dense_as
from fastadv.ops.nearest import lagrangian_reference as reference
from fastadv.ops.nearest.radius import check_slots
from fastadv.ops.steps import arguments as step_arguments

MEMORY = 5  # numbers that a slot remembers
_FLOATS = (torch.float32, torch.float64)


class Course(NamedTuple):
    """How ALMA goes: `fastadv.alma` names and explains the same settings.

    rate, fall: the step size, in units of `unit`, and the logarithm of its share at the end. reach:
    if not 0, what step size a first step of this length takes is looked for in place of rate. unit:
    of lengths. rms, inertia: of the means of squares and of steps. smoothing: the weight of a new
    multiplier; improvement, increase: the penalty grows by `increase` where a check finds more than
    `improvement` times the last ratio.
    """

    rate: float
    reach: float
    fall: float
    unit: float
    rms: float
    inertia: float
    smoothing: float
    improvement: float
    increase: float
    steps: int
    check_steps: int


def _launch(*arguments) -> None:
    registry.kernels("nearest.lagrangian").launch_alma_step(*arguments)


_STEP = registry.register(
    "alma_step_(Tensor(a!) x_adv, Tensor(b!) closest, Tensor grad, Tensor x, Tensor(c!) square, "
    "Tensor(d!) momentum, Tensor loss, Tensor prediction, Tensor aims, Tensor(e!) distance, "
    "Tensor(f!) memory, Tensor(g!) slots, Tensor eps, float lo, float hi, float unit, float reach, "
    "float fall, float rms, float inertia, float smoothing, float improvement, float increase, "
    "int steps, int check_steps, bool targeted, bool stop_early) -> ()",
    reference=reference.alma_step,
    compiled="nearest.loops_lagrangian",
    launch=_launch,
    tolerance=1e-5,
)


def first_memory(course: Course) -> tuple[float, ...]:
    """What a slot remembers at first: multiplier, penalty, ratio at the last check, the step of the
    first adversarial point, beyond all steps while there is none, and the step size."""
    return 1.0, 1.0, 0.0, course.steps + 1.0, course.rate


def alma_step_(
    x_adv: torch.Tensor,
    closest: torch.Tensor,
    grad: torch.Tensor,
    x: torch.Tensor,
    *,
    square: torch.Tensor,
    momentum: torch.Tensor,
    loss: torch.Tensor,
    prediction: torch.Tensor,
    aims: torch.Tensor,
    distance: torch.Tensor,
    memory: torch.Tensor,
    slots: torch.Tensor,
    eps: torch.Tensor,
    course: Course,
    bounds: Sequence[float] | None = (0.0, 1.0),
    targeted: bool = False,
    stop_early: bool = False,
) -> None:
    """One step of ALMA, in place: of d = x_adv - x by RMSProp with momentum along
    -(d / ||d||_2 - P2'(D) * grad), where D = -loss is the ratio of logits, then clipped to bounds.

    x_adv: (B, ...), the point just evaluated; loss: (B,), the head's "ratio" there, and grad its
    gradient. closest, prediction, aims, distance, slots, eps, targeted, stop_early: as in
    `radius_step_`, but that only a loss above 0 is adversarial. square, momentum: as x, in the
    compute dtype, ones and zeros at first. memory: (B, 5), `first_memory` at first.

    With mu, rho of the memory: P2'(D) = mu (1 + 2 rho D) + (rho D)^2 / 2 from 0 on, else
    mu / (1 - rho D)^2. Every course.check_steps points rho grows where no adversarial point is
    known and D has not fallen enough; mu follows P2'(D) by course.smoothing, within [1e-6, 1e12].
    From a sample's first adversarial point on, the step size falls to the end. A first point has no
    d. There, with course.reach, the step size becomes that of a step of this length along the
    gradient alone, x + size * P2'(D) * grad in bounds, found by doubling and 20 halvings.
    What is not finite in a gradient counts as 0. One launch. Raises ValueError if shapes, dtypes,
    devices or layouts do not fit.

    Example: `alma_step_(x_adv, closest, grad, x, square=square, momentum=momentum, loss=loss,
    prediction=prediction, aims=y, distance=distance, memory=memory, slots=slots, eps=eps,
    course=course)`.
    Source: Rony et al. 2021, arXiv:2011.11857.
    """
    lo, hi = step_arguments.check_bounds(bounds)
    step_arguments.check_step_tensors(x_adv, grad, x)
    memory_format = dense_as(x_adv, "x_adv", closest=closest)
    dtype = layout.compute_dtype(x_adv)
    for name, state in (("square", square), ("momentum", momentum)):
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
        eps=(eps, _FLOATS),
    )
    check_slots(x_adv, slots)
    if (memory.shape, memory.dtype) != ((len(x_adv), MEMORY), dtype) or not memory.is_contiguous():
        raise ValueError(
            f"memory must be ({len(x_adv)}, {MEMORY}) {dtype} and contiguous; got "
            f"{tuple(memory.shape)} {memory.dtype}"
        )
    _STEP(
        x_adv,
        closest,
        layout.in_format(grad, memory_format),
        layout.in_format(x, memory_format),
        square,
        momentum,
        loss,
        prediction,
        aims,
        distance,
        memory,
        slots,
        eps,
        lo,
        hi,
        course.unit,
        course.reach,
        course.fall,
        course.rms,
        course.inertia,
        course.smoothing,
        course.improvement,
        course.increase,
        course.steps,
        course.check_steps,
        targeted,
        stop_early,
    )
