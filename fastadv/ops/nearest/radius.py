"""The steps of DDN and FMN as an op: verdict on the last point, a new radius, the next point."""

from collections.abc import Sequence
from typing import Literal

import torch

from fastadv.kernels import slots as columns
from fastadv.ops import layout, registry
from fastadv.ops.fab.step import check_rows, dense_as
from fastadv.ops.nearest import reference
from fastadv.ops.steps import arguments as step_arguments

Norm = Literal["linf", "l2", "l1", "l0"]
Rule = Literal["ddn", "fmn"]
NORMS_OF: dict[str, tuple[str, ...]] = {"ddn": ("l2",), "fmn": ("linf", "l2", "l1", "l0")}
_FLOATS = (torch.float32, torch.float64)


def _launch(*arguments) -> None:
    registry.kernels("nearest.radius").launch_radius_step(*arguments)


_STEP = registry.register(
    "radius_step_(Tensor(a!) x_adv, Tensor(b!) closest, Tensor grad, Tensor x, Tensor loss, "
    "Tensor prediction, Tensor aims, Tensor(c!) distance, Tensor(d!) radius, Tensor limit, "
    "Tensor(e!) slots, Tensor eps, Tensor schedule, float overshoot, float lo, float hi, str norm, "
    "str rule, bool minds_bounds, bool targeted, bool stop_early) -> ()",
    reference=reference.radius_step,
    compiled="nearest.loops",
    launch=_launch,
    shared=("schedule",),
    tolerance=1e-5,
)


def radius_step_(
    x_adv: torch.Tensor,
    closest: torch.Tensor,
    grad: torch.Tensor,
    x: torch.Tensor,
    *,
    loss: torch.Tensor,
    prediction: torch.Tensor,
    aims: torch.Tensor,
    distance: torch.Tensor,
    radius: torch.Tensor,
    limit: torch.Tensor,
    slots: torch.Tensor,
    eps: torch.Tensor,
    schedule: torch.Tensor,
    overshoot: float = 0.0,
    bounds: Sequence[float] | None = (0.0, 1.0),
    norm: Norm,
    rule: Rule,
    minds_bounds: bool = True,
    targeted: bool = False,
    stop_early: bool = False,
) -> None:
    """One step of DDN or FMN, in place: u = x_adv - x + size * grad / ||grad||_2, brought to the
    radius, and x_adv = clip(x + u) to bounds.

    x_adv: (B, ...), the point just evaluated; loss: (B,), what the attack ascends there, grad its
    gradient, prediction the class; aims: (B,) int64 or int32, the labels, or if targeted the
    targets. Only rows with slots[ACTIVE] take part; slots[STEP] counts their points, 0 at the
    start.

    1. A point is adversarial where prediction != aims (targeted: ==) and loss is no NaN, which sets
       FAULT_NAN_LOGITS. closest, distance and slots[NEAREST_STEP] keep it if it is nearer than
       `distance` (B,), inf at the start. SUCCESS_STEP becomes STEP at the first one within eps
       (B,), where with stop_early the row ends; every row ends with point schedule.shape[1].
    2. The others move. schedule: (2, steps), by STEP size and gamma. radius (B,): rule "ddn" has
       radius * (1 - gamma) after an adversarial point, * (1 + gamma) after another one. "fmn" is
       not above `distance` in the first case; in the second, while no adversarial point is known,
       it is ||x_adv - x|| + (1 + overshoot) * |loss| / ||grad||, in the dual norm. Not above
       `limit` (B,).
    3. "linf": u is clamped to the radius; "l2": scaled to have it; "l1": projected onto the ball;
       "l0": so many entries of the largest |u| are kept, and those that tie with the last, all
       others being those of x bit for bit. There lengths count entries, and the radius falls and
       rises by 1 at least, in whole numbers, from where it was.

    minds_bounds: the gradient counts as 0 where an element lies at a bound that it points out of,
    and the L1 ball is cut by the bounds. What is not finite in the gradient counts as 0. A zero
    gradient moves nothing, and its |loss| / 0 is infinite. x_adv, closest, grad, x: same shape,
    dtype and device; distance, radius, limit, schedule in the compute dtype. One launch. Raises
    ValueError if shapes, dtypes, devices or layouts do not fit.

    Example: `radius_step_(x_adv, closest, grad, x, loss=loss, prediction=prediction, aims=y,
    distance=distance, radius=radius, limit=limit, slots=slots, eps=eps, schedule=schedule,
    norm="l2", rule="ddn")`.
    Source: Rony et al. 2019, arXiv:1811.09600; Pintor et al. 2021, arXiv:2102.12827. Unlike FMN's
    paper, points within the L2 ball are brought onto its sphere, as adversarial-library does.
    """
    if norm not in NORMS_OF.get(rule, ()):
        raise ValueError(f"rule and norm must be some of {NORMS_OF}; got {rule!r} and {norm!r}")
    lo, hi = step_arguments.check_bounds(bounds)
    step_arguments.check_step_tensors(x_adv, grad, x)
    memory_format = dense_as(x_adv, "x_adv", closest=closest)
    dtype = layout.compute_dtype(x_adv)
    classes = (torch.int64, torch.int32)
    check_rows(
        x_adv,
        loss=(loss, _FLOATS),
        prediction=(prediction, classes),
        aims=(aims, classes),
        distance=(distance, (dtype,)),
        radius=(radius, (dtype,)),
        limit=(limit, (dtype,)),
        eps=(eps, _FLOATS),
    )
    check_slots(x_adv, slots)
    if schedule.ndim != 2 or len(schedule) != 2 or schedule.dtype != dtype:
        raise ValueError(
            f"schedule must be (2, steps) {dtype}; got {tuple(schedule.shape)} {schedule.dtype}"
        )
    _STEP(
        x_adv,
        closest,
        layout.in_format(grad, memory_format),
        layout.in_format(x, memory_format),
        loss,
        prediction,
        aims,
        distance,
        radius,
        limit,
        slots,
        eps,
        schedule.contiguous(),
        overshoot,
        lo,
        hi,
        norm,
        rule,
        minds_bounds,
        targeted,
        stop_early,
    )


def check_slots(x_adv: torch.Tensor, slots: torch.Tensor) -> None:
    """Raises ValueError unless `slots` are those of x_adv's rows."""
    expected = (x_adv.shape[0], columns.WIDTH), torch.int32
    if (slots.shape, slots.dtype) != expected or not slots.is_contiguous():
        raise ValueError(
            f"slots must be ({len(x_adv)}, {columns.WIDTH}) int32 and contiguous; got "
            f"{tuple(slots.shape)} {slots.dtype} with strides {slots.stride()}"
        )
