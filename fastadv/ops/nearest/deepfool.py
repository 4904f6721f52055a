"""DeepFool's step as an op: verdict on the last point, then onto the boundary of a linear model."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from fastadv.ops import layout, registry
from fastadv.ops.fab.hyperplane import finite_or_zero, row_norms
from fastadv.ops.fab.reference import DUAL
from fastadv.ops.fab.step import check_rows, dense_as
from fastadv.ops.fab.verdict import as_rows
from fastadv.ops.nearest.radius import check_slots
from fastadv.ops.nearest.verdict import judge
from fastadv.ops.steps import arguments as step_arguments
from fastadv.ops.steps.l2 import unit_scale

NORMS = ("linf", "l2")
_FLOATS = (torch.float32, torch.float64)
_FARTHEST = 1e30  # of a step: finite, because 0 * inf is not 0


class DeepFoolStep(NamedTuple):
    """The arguments of the op `fastadv::deepfool_step_`, by position."""

    x_adv: torch.Tensor
    closest: torch.Tensor
    grad: torch.Tensor
    x: torch.Tensor
    difference: torch.Tensor
    prediction: torch.Tensor
    labels: torch.Tensor
    distance: torch.Tensor
    slots: torch.Tensor
    eps: torch.Tensor
    steps: int
    overshoot: float
    slack: float
    lo: float
    hi: float
    norm: str
    minds_bounds: bool


def _reference(*arguments) -> None:
    step = DeepFoolStep(*arguments)
    if step.x_adv.numel() == 0:
        return
    stored, dtype = as_rows(step.x_adv), layout.compute_dtype(step.x_adv)
    here, clean = stored.to(dtype), as_rows(step.x).to(dtype)
    verdict = judge(
        step.slots,
        step.difference,
        step.prediction,
        step.labels,
        step.distance,
        step.eps,
        row_norms(here - clean, step.norm),
        steps=step.steps,
        targeted=False,
        stop_early=False,
        stop_anywhere=True,
    )
    closest = as_rows(step.closest)
    closest.copy_(torch.where(verdict.closer.unsqueeze(1), stored, closest))
    w = finite_or_zero(as_rows(step.grad).to(dtype))
    if step.minds_bounds:
        blocked = ((w > 0) & (here >= step.hi)) | ((w < 0) & (here <= step.lo))
        w = torch.where(blocked, 0.0, w)
    scale = unit_scale(w.abs().amax(1, keepdim=True))
    w = w * scale
    dual = row_norms(w, DUAL[step.norm])
    steep = dual > 0
    length = torch.where(steep, dual, 1.0)
    gap = verdict.loss.abs() * scale.squeeze(1) / length + step.slack
    reach = (gap * (1.0 + step.overshoot)).clamp(max=_FARTHEST)
    if step.norm == "linf":
        u = w.sign() * reach.unsqueeze(1)
    else:
        u = w * torch.where(steep, reach / length, 0.0).unsqueeze(1)
    moved = (here + u).clamp(step.lo, step.hi).to(stored.dtype)
    stored.copy_(torch.where(verdict.moving.unsqueeze(1), moved, stored))


def _launch(*arguments) -> None:
    registry.kernels("nearest.deepfool").launch_deepfool_step(*arguments)


_STEP = registry.register(
    "deepfool_step_(Tensor(a!) x_adv, Tensor(b!) closest, Tensor grad, Tensor x, "
    "Tensor difference, Tensor prediction, Tensor labels, Tensor(c!) distance, Tensor(d!) slots, "
    "Tensor eps, int steps, float overshoot, float slack, float lo, float hi, str norm, "
    "bool minds_bounds) -> ()",
    reference=_reference,
    launch=_launch,
    tolerance=1e-5,
)


def deepfool_step_(
    x_adv: torch.Tensor,
    closest: torch.Tensor,
    grad: torch.Tensor,
    x: torch.Tensor,
    *,
    difference: torch.Tensor,
    prediction: torch.Tensor,
    labels: torch.Tensor,
    distance: torch.Tensor,
    slots: torch.Tensor,
    eps: torch.Tensor,
    steps: int,
    overshoot: float = 0.02,
    slack: float = 1e-4,
    bounds: Sequence[float] | None = (0.0, 1.0),
    norm: str,
    minds_bounds: bool = True,
) -> None:
    """One step of DeepFool, in place: x_adv <- clip(x_adv + (1 + overshoot) * r) to bounds, where
    r = (|f| / ||w||_dual + slack) * d(w), d(w) being w / ||w||_2 ("l2") or sign(w) ("linf").

    x_adv: (B, ...), the point just evaluated; difference: (B,), f = z_k - z_y there for the class k
    whose boundary is nearest, grad its gradient w; prediction, labels: (B,) int64 or int32. Only
    rows with slots[ACTIVE] take part; slots[STEP] counts their points, 0 at the start. A row whose
    point is adversarial (prediction != label, f no NaN, which sets FAULT_NAN_LOGITS) ends there:
    closest, distance (B,) and slots[NEAREST_STEP] keep it, SUCCESS_STEP if it lies within eps (B,).
    Every row ends with point `steps`; the others move.

    minds_bounds: w counts as 0 where an element lies at a bound that it points out of. What is not
    finite in it counts as 0; of zeros nothing moves. x_adv, closest, grad, x: same shape, dtype and
    device; distance in the compute dtype. One launch. Raises ValueError if shapes, dtypes, devices
    or layouts do not fit.

    Example: `deepfool_step_(x_adv, closest, grad, x, difference=f, prediction=prediction,
    labels=y, distance=distance, slots=slots, eps=eps, steps=50, norm="l2")`.
    Source: Moosavi-Dezfooli et al. 2016, arXiv:1511.04599, algorithm 2.
    """
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {NORMS}; got {norm!r}")
    lo, hi = step_arguments.check_bounds(bounds)
    step_arguments.check_step_tensors(x_adv, grad, x)
    memory_format = dense_as(x_adv, "x_adv", closest=closest)
    classes = (torch.int64, torch.int32)
    check_rows(
        x_adv,
        difference=(difference, _FLOATS),
        prediction=(prediction, classes),
        labels=(labels, classes),
        distance=(distance, (layout.compute_dtype(x_adv),)),
        eps=(eps, _FLOATS),
    )
    check_slots(x_adv, slots)
    grad, x = (layout.in_format(t, memory_format) for t in (grad, x))
    rows = difference, prediction, labels, distance, slots, eps
    _STEP(x_adv, closest, grad, x, *rows, steps, overshoot, slack, lo, hi, norm, minds_bounds)
