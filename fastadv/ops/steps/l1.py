"""The L1 step and projection as ops: sparse ascent, the exact projection onto ball and box."""

import torch

from fastadv.ops import layout, reduction, registry
from fastadv.ops.steps import arguments as step_arguments
from fastadv.ops.steps.l2 import momentum_direction


def _mass(magnitude: torch.Tensor, room: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return reduction.tree_sum(torch.minimum((magnitude - t).clamp(min=0), room)).unsqueeze(1)


def _threshold(
    magnitude: torch.Tensor, room: torch.Tensor, eps: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(t, outside): sum(clamp(magnitude - t, 0, room)) = eps in the rows that are outside.

    Sorts the kinks of the sum and bisects them; fixed work, in float64.
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
    t = start + (stop - start) / 2
    excess = magnitude - t
    slope = reduction.tree_sum(((excess > 0) & (excess < room)).double()).unsqueeze(1)
    t = t + (_mass(magnitude, room, t) - eps) / slope.clamp(min=1)
    return torch.minimum(torch.maximum(t, start), stop), outside


def _projected(
    x_adv: torch.Tensor,
    move: torch.Tensor,
    x: torch.Tensor,
    eps: torch.Tensor,
    lo: float,
    hi: float,
) -> torch.Tensor:
    """Rows of x_adv + move, projected; x_adv + move itself, clamped, within the budget."""
    u = x_adv - x + move
    room = torch.where(u >= 0, hi - x, x - lo).clamp(min=0).double()
    magnitude = u.abs().double()
    t, outside = _threshold(magnitude, room, eps.double())
    z = torch.minimum((magnitude - t).clamp(min=0), room)
    z = torch.where(u < 0, -z, z)
    moved = torch.where(outside, (x.double() + z).to(x.dtype), x_adv + move)
    return moved.clamp(lo, hi)


def _sparse_move(
    direction: torch.Tensor, step: torch.Tensor, sparsity: torch.Tensor
) -> torch.Tensor:
    """step * sign(direction) / count where |direction| reaches its k-th largest value."""
    size = direction.shape[1]
    dropped = ((1.0 - sparsity) * size).floor().clamp(0, size - 1).long()
    magnitude = direction.abs()
    kept = (magnitude >= magnitude.sort(1).values.gather(1, dropped)) & (magnitude > 0)
    count = reduction.tree_sum(kept.to(step.dtype)).unsqueeze(1)
    return torch.where(kept, direction.sign() * (step / count.clamp(min=1)), 0.0)


def _rows(x_adv: torch.Tensor, *tensors: torch.Tensor) -> list[torch.Tensor]:
    dtype = layout.compute_dtype(x_adv)
    return [t.to(dtype).contiguous().view(len(t), -1) for t in (x_adv, *tensors)]


def _column(scalar: float, rows: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
    column = like.new_full((len(like),), scalar) if rows is None else rows.to(like.dtype)
    return column.unsqueeze(1)


def _moved(
    x_adv, direction, x, step_size, step_rows, eps, eps_rows, lo, hi, sparsity, sparsity_rows
) -> torch.Tensor:
    if x_adv.numel() == 0:
        return x_adv
    start, d, clean = _rows(x_adv, direction, x)
    step = _column(step_size, step_rows, clean)
    move = _sparse_move(d, step, _column(sparsity, sparsity_rows, clean))
    moved = _projected(start, move, clean, _column(eps, eps_rows, clean), lo, hi)
    return moved.view(x_adv.shape)


def _step_inplace_reference(
    x_adv,
    grad,
    x,
    step_size,
    step_rows,
    eps,
    eps_rows,
    lo,
    hi,
    slots,
    momentum,
    decay,
    model_input,
    mean,
    std,
    sparsity,
    sparsity_rows,
) -> None:
    direction = step_arguments.reference_grad(grad, x_adv, model_input, std)
    if momentum is not None:
        direction = momentum_direction(momentum, direction, decay, slots)
    moved = _moved(
        x_adv, direction, x, step_size, step_rows, eps, eps_rows, lo, hi, sparsity, sparsity_rows
    )
    step_arguments.reference_store(x_adv, moved, slots, model_input, mean, std)


def _launch_step_inplace(
    x_adv,
    grad,
    x,
    step_size,
    step_rows,
    eps,
    eps_rows,
    lo,
    hi,
    slots,
    momentum,
    decay,
    model_input,
    mean,
    std,
    sparsity,
    sparsity_rows,
) -> None:
    from fastadv.kernels.steps.l1 import launch_l1

    launch_l1(
        x_adv,
        x_adv,
        grad,
        x,
        step_size=step_size,
        step_rows=step_rows,
        eps=eps,
        eps_rows=eps_rows,
        sparsity=sparsity,
        sparsity_rows=sparsity_rows,
        lo=lo,
        hi=hi,
        slot_state=slots,
        momentum=momentum,
        decay=decay,
        model_input=model_input,
        mean=mean,
        std=std,
        **step_arguments.launch_layout(x_adv, model_input),
    )


def _project_reference(x_adv, x, eps, eps_rows, lo, hi) -> torch.Tensor:
    if x_adv.numel() == 0:
        return torch.empty_like(x_adv)
    start, clean = _rows(x_adv, x)
    still = torch.zeros_like(start)
    moved = _projected(start, still, clean, _column(eps, eps_rows, clean), lo, hi)
    return torch.empty_like(x_adv).copy_(moved.view(x_adv.shape))


def _launch_project(x_adv, x, eps, eps_rows, lo, hi) -> torch.Tensor:
    from fastadv.kernels.steps.l1 import launch_l1

    out = torch.empty_like(x_adv)
    launch_l1(
        out,
        x_adv,
        None,
        x,
        step_size=0.0,
        step_rows=None,
        eps=eps,
        eps_rows=eps_rows,
        sparsity=1.0,
        sparsity_rows=None,
        lo=lo,
        hi=hi,
        slot_state=None,
        momentum=None,
        decay=0.0,
        model_input=None,
        mean=None,
        std=None,
        inner=1,
        cross=False,
        channels_last=False,
    )
    return out


_STEP_INPLACE = registry.register(
    f"l1_step_(Tensor(a!) x_adv, Tensor grad, Tensor x, {step_arguments.STEP_SCHEMA}, "
    "float sparsity, Tensor? sparsity_rows) -> ()",
    reference=_step_inplace_reference,
    launch=_launch_step_inplace,
)
_PROJECT = registry.register(
    "project_l1(Tensor x_adv, Tensor x, float eps, Tensor? eps_rows, float lo, float hi) -> Tensor",
    reference=_project_reference,
    launch=_launch_project,
    fake=lambda x_adv, *args: torch.empty_like(x_adv),
)


def l1_step_(
    x_adv: torch.Tensor,
    grad: torch.Tensor,
    x: torch.Tensor,
    *,
    step_size: float | torch.Tensor,
    eps: float | torch.Tensor,
    bounds: tuple[float, float] | None = (0.0, 1.0),
    sparsity: float | torch.Tensor = 0.2,
    slots: torch.Tensor | None = None,
    momentum: torch.Tensor | None = None,
    decay: float = 1.0,
    model_input: torch.Tensor | None = None,
    mean: torch.Tensor | None = None,
    std: torch.Tensor | None = None,
) -> torch.Tensor:
    """One sparse L1 PGD step, in place: x_adv + step_size * kept * sign(grad) / sum(kept),
    projected onto {z : ||z - x||_1 <= eps, lo <= z <= hi}; kept are a sample's largest |grad|.

    x_adv, grad, x: (B, ...), same shape, dtype and device. step_size, eps: L1 lengths in input
    units (12.0 for images in [0, 1]); floats or (B,). A negative step_size descends. sparsity: the
    share of the D elements that move, float or (B,): all that reach the k-th largest |grad|,
    k = D - min(floor((1 - sparsity) * D), D - 1), except zeros; 1.0 is a dense sign step. A NaN
    gradient counts as 0; a zero gradient moves nothing. bounds=None is the ball alone. momentum,
    model_input, mean, std, slots: as in `linf_step_`; the momentum's largest elements are then
    followed. Returns x_adv. Raises ValueError if shapes, dtypes or devices differ.

    Example: `fastadv.ops.l1_step_(x_adv, grad, x, step_size=1.0, eps=12.0, sparsity=0.2)`.
    Source: Tramer and Boneh 2019, arXiv:1904.13000, section 3 (SLIDE), with the projection of Croce
    and Hein 2021, arXiv:2103.01208; ties and k as in AutoAttack's L1-APGD.
    """
    share = step_arguments.scalar_or_rows("sparsity", sparsity, x)
    return step_arguments.step_in_place(
        _STEP_INPLACE,
        x_adv,
        grad,
        x,
        step_size,
        eps,
        bounds,
        slots,
        momentum,
        decay,
        model_input,
        mean,
        std,
        *share,
    )


def l1_step(
    x_adv: torch.Tensor,
    grad: torch.Tensor,
    x: torch.Tensor,
    *,
    step_size: float | torch.Tensor,
    eps: float | torch.Tensor,
    bounds: tuple[float, float] | None = (0.0, 1.0),
    sparsity: float | torch.Tensor = 0.2,
) -> torch.Tensor:
    """`l1_step_` on a copy of x_adv.

    Example: `x_adv = fastadv.ops.l1_step(x_adv, grad, x, step_size=1.0, eps=12.0)`.
    """
    memory_format = layout.dense_format(x_adv) or torch.contiguous_format
    out = x_adv.detach().clone(memory_format=memory_format)
    return l1_step_(out, grad, x, step_size=step_size, eps=eps, bounds=bounds, sparsity=sparsity)


def l1_step_reference(
    x_adv: torch.Tensor,
    grad: torch.Tensor,
    x: torch.Tensor,
    *,
    step_size: float | torch.Tensor,
    eps: float | torch.Tensor,
    bounds: tuple[float, float] | None = (0.0, 1.0),
    sparsity: float | torch.Tensor = 0.2,
) -> torch.Tensor:
    """The eager twin of `l1_step`: it defines the result up to rounding (contract C1)."""
    lo, hi = step_arguments.check_bounds(bounds)
    step = step_arguments.scalar_or_rows("step_size", step_size, x)
    radius = step_arguments.scalar_or_rows("eps", eps, x)
    share = step_arguments.scalar_or_rows("sparsity", sparsity, x)
    direction = step_arguments.reference_grad(grad, x_adv, None, None)
    return _moved(x_adv, direction, x, *step, *radius, lo, hi, *share).to(x_adv.dtype)


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
