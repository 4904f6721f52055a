"""The exact projection onto L1 ball and box: in eager torch, and alone as an op."""

import torch

from fastadv.ops import doubles, layout, reduction, registry
from fastadv.ops.steps import arguments as step_arguments
from fastadv.ops.steps.arguments import StepCall


def _mass(magnitude: torch.Tensor, room: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return reduction.tree_sum(torch.minimum((magnitude - t).clamp(min=0), room)).unsqueeze(1)


def _threshold(
    magnitude: torch.Tensor, room: torch.Tensor, eps: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(t, outside): sum(clamp(magnitude - t, 0, room)) = eps in the rows that are outside.

    Sorts the kinks of the sum and bisects them; fixed work, in the widest dtype of the device.
    """
    zero = torch.zeros_like(eps)
    outside = _mass(magnitude, room, zero) > eps
    kinks = torch.cat([zero, magnitude, (magnitude - room).clamp(min=0)], 1).sort(1).values
    first = torch.zeros_like(eps, dtype=torch.int64)
    last = first + kinks.shape[1] - 1
    for _ in range(kinks.shape[1].bit_length()):
        middle = (first + last) // 2
        over = _mass(magnitude, room, kinks.gather(1, middle)) > eps
        first, last = torch.where(over, middle, first), torch.where(over, last, middle)
    start, stop = kinks.gather(1, first), kinks.gather(1, last)
    # between two kinks the sum is linear; its middle is where each element's side is certain
    t = start + 0.5 * (stop - start)
    excess = magnitude - t
    slope = reduction.tree_sum(((excess > 0) & (excess < room)).to(t.dtype)).unsqueeze(1)
    t = t + (_mass(magnitude, room, t) - eps) / slope.clamp(min=1)
    return torch.minimum(torch.maximum(t, start), stop), outside


def project_rows(
    x_adv: torch.Tensor,
    move: torch.Tensor,
    x: torch.Tensor,
    eps: torch.Tensor,
    lo: float,
    hi: float,
) -> torch.Tensor:
    """Rows of x_adv + move, projected; x_adv + move itself, clamped, within the budget."""
    u, wide = x_adv - x + move, doubles.widest(x)
    room = torch.where(u >= 0, hi - x, x - lo).clamp(min=0).to(wide)
    magnitude = u.abs().to(wide)
    t, outside = _threshold(magnitude, room, eps.to(wide))
    z = torch.minimum((magnitude - t).clamp(min=0), room)
    z = torch.where(u < 0, -z, z)
    moved = torch.where(outside, (x.to(wide) + z).to(x.dtype), x_adv + move)
    return moved.clamp(lo, hi)


def as_rows(x_adv: torch.Tensor, *tensors: torch.Tensor) -> list[torch.Tensor]:
    """(B, D) in x_adv's compute dtype, each."""
    dtype = layout.compute_dtype(x_adv)
    return [t.to(dtype).contiguous().view(len(t), -1) for t in (x_adv, *tensors)]


def _project_reference(x_adv, x, eps, eps_rows, lo, hi) -> torch.Tensor:
    if x_adv.numel() == 0:
        return torch.empty_like(x_adv)
    start, clean = as_rows(x_adv, x)
    still = torch.zeros_like(start)
    moved = project_rows(start, still, clean, layout.column(eps, eps_rows, clean), lo, hi)
    return torch.empty_like(x_adv).copy_(moved.view(x_adv.shape))


def _launch_project(x_adv, x, eps, eps_rows, lo, hi) -> torch.Tensor:
    out = torch.empty_like(x_adv)
    call = StepCall(x_adv, x_adv, x, 0.0, None, eps, eps_rows, lo, hi)
    registry.kernels("steps.l1").launch_l1(
        out, *call, 1.0, None, ascends=False, inner=1, cross=False, channels_last=False
    )
    return out


_PROJECT = registry.register(
    "project_l1(Tensor x_adv, Tensor x, float eps, Tensor? eps_rows, float lo, float hi) -> Tensor",
    reference=_project_reference,
    compiled="steps.loops_l1",
    launch=_launch_project,
    fake=lambda x_adv, *args: torch.empty_like(x_adv),
    tolerance=1e-6,
)


def project_l1(
    x_adv: torch.Tensor,
    x: torch.Tensor,
    *,
    eps: float | torch.Tensor,
    bounds: tuple[float, float] | None = (0.0, 1.0),
) -> torch.Tensor:
    """The nearest point (in L2) to x_adv in {z : ||z - x||_1 <= eps, lo <= z <= hi}.

    x_adv, x: (B, ...), same shape, dtype and device; x in bounds. eps: in input units, float or
    (B,). bounds=None is the ball alone. A point that meets both is returned as it is. Raises
    ValueError if shapes, dtypes or devices differ.

    Example: `x_adv = fastadv.ops.project_l1(x_adv, x, eps=12.0)`.
    Source: Croce and Hein 2021, arXiv:2103.01208, proposition 2.1.
    """
    step_arguments.check_step_tensors(x_adv, x_adv, x)
    lo, hi = step_arguments.check_bounds(bounds)
    radius = step_arguments.scalar_or_rows("eps", eps, x)
    memory_format = layout.dense_format(x_adv) or torch.contiguous_format
    x_adv, x = (layout.in_format(t, memory_format) for t in (x_adv, x))
    with torch.no_grad():  # a projection is not differentiated through
        return _PROJECT(x_adv, x, *radius, lo, hi)


def project_l1_reference(
    x_adv: torch.Tensor,
    x: torch.Tensor,
    *,
    eps: float | torch.Tensor,
    bounds: tuple[float, float] | None = (0.0, 1.0),
) -> torch.Tensor:
    """The eager twin of `project_l1`: it defines the result up to rounding (contract C1)."""
    lo, hi = step_arguments.check_bounds(bounds)
    radius = step_arguments.scalar_or_rows("eps", eps, x)
    return _project_reference(x_adv, x, *radius, lo, hi)
