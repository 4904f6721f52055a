"""APGD's L2 step as an op."""

from collections.abc import Sequence

import torch

from fastadv.kernels import box as planes
from fastadv.ops import reduction, registry, rounding
from fastadv.ops.apgd import rows as apgd_rows
from fastadv.ops.apgd import step as apgd_step
from fastadv.ops.apgd.step import ApgdStep, Tile
from fastadv.ops.steps import arguments as step_arguments

_TILE = 262144  # more than in L-infinity: a sum of rows is some 25 operations
_GUARD = 1e-12  # the authors': N(v) = v / (||v|| + 1e-12)


def _norm(rows: torch.Tensor) -> torch.Tensor:
    return rounding.root(reduction.tree_sum(rows * rows)).unsqueeze(1)


def _onto_ball(u: torch.Tensor, x: torch.Tensor, tile: Tile) -> torch.Tensor:
    """clamp(x + N(u) * min(radius, ||u||), lo, hi), in place of u."""
    norm = _norm(u if tile.unit is None else u / tile.unit)
    factor = torch.minimum(norm, tile.radius) / (norm + _GUARD)
    return tile.clamped_(u.mul_(factor).add_(x))


def _moved(
    z: torch.Tensor, g: torch.Tensor, x: torch.Tensor, x_previous: torch.Tensor, tile: Tile
) -> torch.Tensor:
    inf = float("inf")
    ascent = g.nan_to_num_(0.0, inf, -inf)
    if tile.box is not None:
        ascent.masked_fill_(tile.box[:, planes.LOWER] >= tile.box[:, planes.UPPER], 0.0)
    if tile.unit is not None:
        ascent.mul_(tile.unit)
    norm = _norm(ascent)
    # a gradient of infinite norm gives no step
    ascent = apgd_rows.cleared(ascent, apgd_rows.bit_mask(norm.isfinite(), z.dtype))
    if tile.unit is not None:
        ascent.mul_(tile.unit)
    ascent.mul_(tile.step / (norm + _GUARD)).add_(z).sub_(x)
    moved = _onto_ball(ascent, x, tile).sub_(z).mul_(tile.share).add_(z)
    inertia = apgd_rows.cleared(z - x_previous, tile.kept).mul_(0.25)
    return _onto_ball(moved.add_(inertia).sub_(x), x, tile)


def _reference(*arguments) -> None:
    apgd_step.reference_step(ApgdStep(*arguments), _moved, elements=_TILE, split_rows=False)


_STEP = registry.register(
    f"apgd_l2_step_({apgd_step.SCHEMA}) -> ()",
    reference=_reference,
    compiled="apgd.loops_l2",
    launch=lambda *arguments: registry.kernels("apgd.l2").launch_apgd_l2(*arguments),
    tolerance=1e-6,
)


def apgd_l2_step_(
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
    """One L2 APGD step, in place: x_adv = P(z + a * (P(z + step_size * N(g)) - z) +
    (1 - a) * (z - x_previous)), x_previous = z, with P(w) = clip(x + N(w - x) * min(eps,
    ||w - x||_2)) to bounds and N(v) = v / (||v||_2 + 1e-12).

    Arguments, bookkeeping and errors are those of `apgd_linf_step_`; norms are per sample. A sample
    whose gradient has an infinite norm moves by its momentum only. box: as in `l2_step_`, in place
    of bounds. One launch.

    Example: `apgd_l2_step_(x_adv, x_previous, x_best, grad_best, grad, x, step_size=step_size,
    eps=eps, bounds=(0.0, 1.0), slots=slots, progress=progress)`.
    Source: Croce and Hein 2020, arXiv:2003.01690, section 3, and its authors' code.
    """
    lo, hi = step_arguments.check_bounds(bounds)
    images = x_adv, x_previous, x_best, grad_best, grad, x
    step = ApgdStep(*images, step_size, eps, lo, hi, slots, progress, correct, x_hit, box)
    apgd_step.step_in_place(_STEP, step)
