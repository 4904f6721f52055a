"""The step of PDGD and PDPGD as an op: verdict on the last point, its weights, the next point."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch

from fastadv.ops import layout, registry
from fastadv.ops.fab.step import check_rows, dense_as
from fastadv.ops.nearest import primal_dual_reference as reference
from fastadv.ops.nearest.radius import check_slots
from fastadv.ops.steps import arguments as step_arguments

Norm = Literal["linf", "l2", "l1", "l0"]
Pull = Literal["linf", "l2", "l1", "l0", "l2/3"]
_NORMS = ("linf", "l2", "l1", "l0")
DUALS = 3  # numbers that a slot remembers
_ROWS = 4  # of a schedule
_FLOATS = (torch.float32, torch.float64)


class Course(NamedTuple):
    """How PDGD and PDPGD go; `fastadv.pdpgd` explains the same settings.

    unit: of lengths. most: of the logarithm of the weights' ratio. smoothing: the weight of new
    weights. turns: of the proximal iterations, at most; 0: the distance's gradient in their place.
    change: iterations end with one of no more than this relative change.
    """

    unit: float
    most: float
    smoothing: float
    turns: int
    change: float


def _launch(*arguments) -> None:
    registry.kernels("nearest.primal_dual").launch_primal_dual_step(*arguments)


_STEP = registry.register(
    "primal_dual_step_(Tensor(a!) x_adv, Tensor(b!) closest, Tensor grad, Tensor x, "
    "Tensor(c!) mean, Tensor(d!) square, Tensor loss, Tensor prediction, Tensor aims, "
    "Tensor(e!) distance, Tensor(f!) duals, Tensor(g!) slots, Tensor eps, Tensor schedule, "
    "float lo, float hi, float unit, float most, float smoothing, float change, int turns, "
    "str norm, str pull, bool targeted, bool stop_early) -> ()",
    reference=reference.primal_dual_step,
    compiled="nearest.loops_primal_dual",
    launch=_launch,
    shared=("schedule",),
    tolerance=1e-5,
)


def schedule(sizes: Sequence[float], dual_sizes: Sequence[float]) -> list[tuple[float, ...]]:
    """Of each step what Adam's mean is multiplied by, and the root of its square; the sizes of the
    steps of the point and of the logarithm."""
    return [
        (size / (1 - 0.9**turn), (1 - 0.999**turn) ** -0.5, size, dual_size)
        for turn, (size, dual_size) in enumerate(zip(sizes, dual_sizes, strict=True), 1)
    ]


def first_duals(ratio: float) -> tuple[float, ...]:
    """What a slot remembers at first: the logarithm of the loss's weight over the distance's, and
    both weights, whose sum is 1. ratio: distance's over loss's."""
    return -math.log(ratio), ratio / (1 + ratio), 1 / (1 + ratio)


def primal_dual_step_(
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
    duals: torch.Tensor,
    slots: torch.Tensor,
    eps: torch.Tensor,
    schedule: torch.Tensor,
    course: Course,
    norm: Norm,
    pull: Pull | None = None,
    bounds: Sequence[float] | None = (0.0, 1.0),
    targeted: bool = False,
    stop_early: bool = False,
) -> None:
    """One step of PDGD or PDPGD, in place: d = x_adv - x moves by Adam along -grad of
    a * ||d|| + b * log(1 + exp(-loss)), or of the logarithm alone and then by a proximal step of
    a / b * ||d|| in Adam's metric.

    x_adv: (B, ...), the point just evaluated; loss: (B,), what the attack ascends there, and grad
    its gradient. closest, prediction, aims, distance, slots, eps, targeted, stop_early: as in
    `radius_step_`. mean, square: of Adam, as x in the compute dtype, zeros at first. duals: (B, 3),
    `first_duals` at first. schedule: (4, steps), see `schedule`. Lengths and gradients are in units
    of course.unit.

    1. Adam: d <- clip(d - size * mean / h), h = sqrt(square) + 1e-8, both without their bias. With
       course.turns 0 ("l2" only) this is all, and a * d / ||d|| (0 at 0) is in the gradient.
    2. Else z = d, and z <- clip(prox(z - h / max(h) * (z - d))) at most so many times, until
       ||change of z||_2 <= course.change * ||z||_2; prox(v) is nearest to v in
       ||. - v||_2^2 / 2 + size * a / (b * max(h)) * ||.||: shrinks all elements ("l1") or the whole
       ("l2"), cuts the largest ("linf"), drops the small ("l0"). pull="l2/3" has the sum of
       |.|^(2/3) in place of the norm, of which it takes the minimum that is not 0 where there is
       one: it drops the small and shrinks the others. What is 0 has the bits of x.
    3. log(b / a) rises by its size at a loss below 0, falls at one above; a and b, which sum up to
       1, follow it by course.smoothing.

    What is not finite in grad counts as 0. One launch. Raises ValueError if shapes, dtypes, devices
    or layouts do not fit.

    Example: `primal_dual_step_(x_adv, closest, grad, x, mean=mean, square=square, loss=loss,
    prediction=prediction, aims=y, distance=distance, duals=duals, slots=slots, eps=eps,
    schedule=schedule, course=course, norm="l1")`.
    Source: Matyasko and Chau 2021, arXiv:2106.01538; Melchior et al. 2019, arXiv:1910.10094.
    """
    if norm not in (_NORMS if course.turns else ("l2",)):
        raise ValueError(f"norm must be one of {_NORMS}, without turns 'l2'; got {norm!r}")
    if pull not in (None, norm, "l2/3"):
        raise ValueError(f"pull must be the norm or 'l2/3'; got {pull!r}")
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
        eps=(eps, _FLOATS),
    )
    check_slots(x_adv, slots)
    for name, table, like in (
        ("duals", duals, (len(x_adv), DUALS)),
        ("schedule", schedule, (_ROWS, schedule.shape[-1])),
    ):
        if (table.shape, table.dtype) != (like, dtype) or not table.is_contiguous():
            raise ValueError(
                f"{name} must be {like} {dtype} and contiguous; got {tuple(table.shape)} "
                f"{table.dtype}"
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
        duals,
        slots,
        eps,
        schedule,
        lo,
        hi,
        course.unit,
        course.most,
        course.smoothing,
        course.change,
        course.turns,
        norm,
        norm if pull is None else pull,
        targeted,
        stop_early,
    )
