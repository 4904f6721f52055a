"""The projection onto a hyperplane inside a box as an op."""

from collections.abc import Sequence

import torch

from fastadv.ops import registry
from fastadv.ops.fab import cpu, hyperplane
from fastadv.ops.steps import arguments as step_arguments

NORMS = ("linf", "l2", "l1")


def _launch(points, w, b, lo, hi, norm) -> torch.Tensor:
    d = torch.empty_like(points)
    registry.kernels("fab.hyperplane").launch_hyperplane_projection(
        d, points, w, b, lo=lo, hi=hi, norm=norm
    )
    return d


_PROJECT = registry.register(
    "hyperplane_projection(Tensor points, Tensor w, Tensor b, float lo, float hi, str norm) "
    "-> Tensor",
    reference=hyperplane.project_reference,
    cpu=cpu.project,
    launch=_launch,
    fake=lambda points, *args: torch.empty_like(points),
    tolerance=1e-4,  # in L1 of 192 elements 2^-22 * 192 = 4.6e-5 for each of the two
)


def check_norm(norm: str) -> None:
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {NORMS}; got {norm!r}")


def _checked(points, w, b, norm, bounds):  # (points, w, b, lo, hi), dense
    check_norm(norm)
    lo, hi = step_arguments.check_bounds(bounds)
    if points.ndim != 2 or not points.is_floating_point():
        raise ValueError(
            f"points must be (B, D) and floating-point; got {tuple(points.shape)} {points.dtype}"
        )
    if (w.shape, w.dtype, w.device) != (points.shape, points.dtype, points.device):
        raise ValueError(
            f"w must match points: {tuple(points.shape)} {points.dtype} on {points.device}; got "
            f"{tuple(w.shape)} {w.dtype} on {w.device}"
        )
    if b.shape != points.shape[:1] or b.device != points.device:
        raise ValueError(
            f"b must be ({len(points)},) on {points.device}; got {tuple(b.shape)} on {b.device}"
        )
    return points.contiguous(), w.contiguous(), b.contiguous(), lo, hi


def hyperplane_projection(
    points: torch.Tensor,
    w: torch.Tensor,
    b: torch.Tensor,
    *,
    norm: str,
    bounds: Sequence[float] | None = (0.0, 1.0),
) -> torch.Tensor:
    """The smallest d, in `norm`, with w . (points + d) = b and lo <= points + d <= hi, row by row.

    points, w: (B, D), same dtype and device, points in bounds; b: (B,). norm: "linf", "l2" or "l1".
    Where the box does not reach the hyperplane, d leads to the corner of the box that is nearest to
    it. Coordinates whose w is 0 do not move, in L2 and L1 none with |w| <= 1e-8; a w that is not
    finite counts as 0. bounds=None is the hyperplane alone. Ties in L1 go to the first coordinates.
    Returns d in the dtype of points. Found by Newton steps or bisection, not by sorting. Raises
    ValueError if shapes, dtypes or devices differ.

    Example: `d = fastadv.ops.fab.projection.hyperplane_projection(x, w, b, norm="l2")`.
    Source: Croce and Hein 2020, arXiv:1907.02044, section 2.2 and appendix A.
    """
    points, w, b, lo, hi = _checked(points, w, b, norm, bounds)
    with torch.no_grad():  # a projection is not differentiated through
        return _PROJECT(points, w, b, lo, hi, norm)
