"""The step of C&W's attacks as an op: verdict on the last point, the constant, the next point."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch

from fastadv.ops import layout, registry
from fastadv.ops.fab.step import check_rows, dense_as
from fastadv.ops.nearest import penalty_reference as reference
from fastadv.ops.nearest.radius import check_slots
from fastadv.ops.steps import arguments as step_arguments

Norm = Literal["l2", "linf"]
COLUMNS = len(reference.Search._fields)
_FLOATS = (torch.float32, torch.float64)


class Course(NamedTuple):
    """How C&W goes; `fastadv.cw` explains the same settings.

    unit: of lengths. kappa: of the loss. increase: what a constant without success is multiplied
    by; decrease: what the level is, after a success, and most: where constants end (both of
    L-infinity). relative: 0, or the steps of a round after a success are this times the nearest
    distance, over unit, of those of a first round, at most 1. settled: the first point of a round
    of L2 at which its constant is judged. rounds: the most of them; points: of all rounds together.
    squashed: the variable is that of a tanh.
    """

    unit: float
    kappa: float
    increase: float
    decrease: float
    most: float
    relative: float
    settled: int
    rounds: int
    points: int
    squashed: bool
    abort_early: bool


def _launch(*arguments) -> None:
    registry.kernels("nearest.penalty").launch_cw_step(*arguments)


_STEP = registry.register(
    "cw_step_(Tensor(a!) x_adv, Tensor(b!) closest, Tensor grad, Tensor x, Tensor(c!) shift, "
    "Tensor(d!) mean, Tensor(e!) square, Tensor loss, Tensor prediction, Tensor aims, "
    "Tensor(f!) distance, Tensor(g!) search, Tensor(h!) slots, Tensor eps, Tensor schedule, "
    "float lo, float hi, float unit, float kappa, float increase, float decrease, float most, "
    "float relative, int settled, int rounds, int points, str norm, bool squashed, "
    "bool abort_early, bool targeted, bool stop_early) -> ()",
    reference=reference.cw_step,
    compiled="nearest.loops_penalty",
    launch=_launch,
    shared=("schedule",),
    tolerance=1e-5,
)


def schedule(step_sizes: Sequence[float]) -> list[tuple[float, float]]:
    """Of each step of a round what Adam's mean is multiplied by, and the root of its square."""
    return [
        (size / (1 - 0.9**turn), (1 - 0.999**turn) ** -0.5)
        for turn, size in enumerate(step_sizes, 1)
    ]


def first_search(constant: float) -> tuple[float, ...]:
    """What a slot remembers at first: constant, its bounds, the loss at the last check, the level
    of L-infinity, the numbers of the point and of the round, whether it has succeeded, and what the
    step sizes are multiplied by."""
    return constant, 0.0, float("inf"), float("inf"), 1.0, 0.0, 0.0, 0.0, 1.0


def cw_step_(
    x_adv: torch.Tensor,
    closest: torch.Tensor,
    grad: torch.Tensor,
    x: torch.Tensor,
    *,
    shift: torch.Tensor,
    mean: torch.Tensor,
    square: torch.Tensor,
    loss: torch.Tensor,
    prediction: torch.Tensor,
    aims: torch.Tensor,
    distance: torch.Tensor,
    search: torch.Tensor,
    slots: torch.Tensor,
    eps: torch.Tensor,
    schedule: torch.Tensor,
    course: Course,
    norm: Norm,
    bounds: Sequence[float] | None = (0.0, 1.0),
    targeted: bool = False,
    stop_early: bool = False,
) -> None:
    """One step of C&W, in place: of the variable `shift` by Adam along the gradient of
    q + c * (kappa - loss), or the first point of a round with another constant c.

    x_adv: (B, ...), the point just evaluated; loss: (B,), the head's "margin" with kappa there, and
    grad its gradient. closest, prediction, aims, distance, slots, eps, targeted, stop_early: as in
    `radius_step_`, but that a point is adversarial only where loss >= kappa, too. shift, mean,
    square: as x, in the compute dtype, zeros at first. search: (B, 9), `first_search` at first.
    schedule: (2, steps), see `schedule`; steps are those of a round.

    1. With d = (x_adv - x) / unit, "l2": q = ||d||^2; "linf": q = sum(max(|d| - level, 0)).
    2. A round ends after `steps` points; with abort_early "l2": at a tenth of them at which the
       loss is above 0.9999 times what it was a tenth before, both from point `settled` on; "linf":
       where it is below c / 10,000. "l2": c becomes the middle of the largest that failed and the
       least that worked, c * increase while none has; with ten rounds or more the last takes the
       least that worked. "linf": c becomes c * increase in a round without a nearer point; else the
       level becomes min(level, distance / unit) * decrease. Every row ends after `rounds` or
       `points`, or in L-infinity where c reaches `most`.
    3. Rounds of L2 begin at shift 0, those of L-infinity where the last one ended; Adam anew.
    4. squashed: x_adv = (tanh(w + shift) + 1) / 2 in the bounds, tanh(w) being x in them times
       1 - 1e-6; else x_adv = clip(x + unit * shift), and shift what is left of it.

    What is not finite in grad counts as 0. One launch. Raises ValueError if shapes, dtypes, devices
    or layouts do not fit, or squashed without bounds.

    Example: `cw_step_(x_adv, closest, grad, x, shift=shift, mean=mean, square=square, loss=loss,
    prediction=prediction, aims=y, distance=distance, search=search, slots=slots, eps=eps,
    schedule=schedule, course=course, norm="l2")`.
    Source: Carlini and Wagner 2017, arXiv:1608.04644.
    """
    if norm not in ("l2", "linf"):
        raise ValueError(f"norm must be 'l2' or 'linf'; got {norm!r}")
    lo, hi = step_arguments.check_bounds(bounds)
    if course.squashed and not hi - lo < float("inf"):
        raise ValueError("a squashed variable needs bounds")
    step_arguments.check_step_tensors(x_adv, grad, x)
    memory_format = dense_as(x_adv, "x_adv", closest=closest)
    dtype = layout.compute_dtype(x_adv)
    for name, state in (("shift", shift), ("mean", mean), ("square", square)):
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
        ("search", search, (len(x_adv), COLUMNS)),
        ("schedule", schedule, (2, schedule.shape[-1])),
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
        shift,
        mean,
        square,
        loss,
        prediction,
        aims,
        distance,
        search,
        slots,
        eps,
        schedule,
        lo,
        hi,
        course.unit,
        course.kappa,
        course.increase,
        course.decrease,
        course.most,
        course.relative,
        course.settled,
        course.rounds,
        course.points,
        norm,
        course.squashed,
        course.abort_early,
        targeted,
        stop_early,
    )
