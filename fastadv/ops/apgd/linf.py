"""APGD's L-infinity step as an op."""

from collections.abc import Sequence

import torch

from fastadv.kernels import box as planes
from fastadv.ops import registry
from fastadv.ops.apgd import cpu as apgd_cpu
from fastadv.ops.apgd import rows as apgd_rows
from fastadv.ops.apgd import step as apgd_step
from fastadv.ops.apgd.step import ApgdStep, Tile
from fastadv.ops.steps import arguments as step_arguments

_TILE = 65536  # measured: 16384 and 262144 take half as long again, at 64 x 3072


def _moved(
    z: torch.Tensor, g: torch.Tensor, x: torch.Tensor, x_previous: torch.Tensor, tile: Tile
) -> torch.Tensor:
    sign = g.sign_()  # sign(NaN) = 0
    if tile.box is None:
        lo, hi = tile.bounds
        # clamped bounds give the same bits as a clamp after them: both are monotonous
        lower, upper = (x - tile.radius).clamp_(lo, hi), (x + tile.radius).clamp_(lo, hi)
    else:
        lower, upper = tile.box[:, planes.LOWER], tile.box[:, planes.UPPER]
    step = tile.step if tile.unit is None else tile.unit * tile.step
    moved = torch.addcmul(z, sign, step)  # one rounding or two: the product is exact
    torch.clamp(moved, lower, upper, out=moved).sub_(z).mul_(tile.share).add_(z)
    inertia = apgd_rows.cleared(torch.sub(z, x_previous, out=sign), tile.kept).mul_(0.25)
    return torch.clamp(moved.add_(inertia), lower, upper, out=moved)


def _reference(*arguments) -> None:
    apgd_step.reference_step(ApgdStep(*arguments), _moved, elements=_TILE, split_rows=True)


_STEP = registry.register(
    f"apgd_linf_step_({apgd_step.SCHEMA}) -> ()",
    reference=_reference,
    cpu=apgd_cpu.linf_step,
    compiled="apgd.loops_linf",
    launch=lambda *arguments: registry.kernels("apgd.linf").launch_apgd_linf(*arguments),
)


def apgd_linf_step_(
    x_adv: torch.Tensor,
    x_previous: torch.Tensor,
    x_best: torch.Tensor,
    grad_best: torch.Tensor,
    grad: torch.Tensor,
    x: torch.Tensor,
    *,
    step_size: torch.Tensor,
    eps: torch.Tensor,
    bounds: Sequence[float] | None,
    slots: torch.Tensor,
    progress: torch.Tensor,
    correct: torch.Tensor | None = None,
    x_hit: torch.Tensor | None = None,
    box: torch.Tensor | None = None,
) -> None:
    """One L-infinity APGD step, in place: x_adv = P(z + a * (P(z + step_size * sign(g)) - z) +
    (1 - a) * (z - x_previous)), x_previous = z; P clips to the eps-ball around x, then to bounds.

    x_adv, x_previous, x_best, grad_best, x, x_hit: (B, ...), same shape, dtype, device and dense
    layout; grad: the same in any layout. Before a slot's first step x_previous, x_best, grad_best
    and x_hit may hold anything. step_size, eps: (B,), in input units. slots: (B, 5) int32, as
    `loss_head_` leaves it; progress: (B, 5), as `apgd_check_` does. correct: (B,) bool. box: as in
    `linf_step_`, in place of eps and bounds.

    A row that improved first becomes x_best, its gradient grad_best; one that is misclassified
    becomes x_hit. (z, g) is (x_best, grad_best) where RESTORE is set, else (x_adv, grad); a is 1 in
    a slot's first step, then 0.75. A NaN gradient counts as 0. Inactive rows are left as they are.
    One launch. Raises ValueError if shapes, dtypes, devices or layouts differ.

    Example: `apgd_linf_step_(x_adv, x_previous, x_best, grad_best, grad, x, step_size=step_size,
    eps=eps, bounds=(0.0, 1.0), slots=slots, progress=progress)`.
    Source: Croce and Hein 2020, arXiv:2003.01690, section 3; bit for bit its authors' code.
    """
    lo, hi = step_arguments.check_bounds(bounds)
    images = x_adv, x_previous, x_best, grad_best, grad, x
    step = ApgdStep(*images, step_size, eps, lo, hi, slots, progress, correct, x_hit, box)
    apgd_step.step_in_place(_STEP, step)
