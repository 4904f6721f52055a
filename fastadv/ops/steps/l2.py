"""The L2 PGD step as an op: ascent along grad / ||grad||_2, eps-ball, pixel clamp; momentum."""

import torch

from fastadv.ops import layout, reduction, registry, rounding
from fastadv.ops.steps import arguments as step_arguments
from fastadv.ops.steps import box as boxes
from fastadv.ops.steps import reference as step_reference
from fastadv.ops.steps.arguments import StepCall

# of fp32 and fp64: integer twin, exponent bits, bits of 2^max, bits of the least normal number
_BITS = {
    torch.float32: (torch.int32, 0x7F800000, 0x7F000000, 0x00800000),
    torch.float64: (torch.int64, 0x7FF0000000000000, 0x7FE0000000000000, 0x0010000000000000),
}


def unit_scale(largest: torch.Tensor) -> torch.Tensor:
    """The power of two that brings `largest` into [1, 4): scaling by it rounds nothing."""
    integer, exponent, top, least = _BITS[largest.dtype]
    return (top - (largest.view(integer) & exponent)).clamp(min=least).view(largest.dtype)


def _norm(rows: torch.Tensor) -> torch.Tensor:
    return rounding.root(reduction.tree_sum(rows * rows)).unsqueeze(1)


def _moved(
    call: StepCall, direction: torch.Tensor, guard: float, box: torch.Tensor | None = None
) -> torch.Tensor:
    dtype = layout.compute_dtype(call.x_adv)
    if call.x_adv.numel() == 0:
        return call.x_adv.to(dtype)
    tensors = call.x_adv, call.x, direction
    x_adv, x, d = (t.to(dtype).contiguous().view(len(t), -1) for t in tensors)
    unit, lower, upper = None, call.lo, call.hi
    if box is not None:  # its planes in C order, as these rows are
        unit = boxes.unit_of(box, call.x_adv)
        unit = None if unit is None else unit.reshape(x.shape)
        lower, upper = (side.reshape(x.shape) for side in boxes.bounds_of(box, call.x_adv))
    step = layout.column(call.step_size, call.step_rows, x)
    radius = layout.column(call.eps, call.eps_rows, x)
    largest = d.abs().amax(1, keepdim=True)
    scale = unit_scale(largest)
    d = torch.where(largest.isfinite(), d * scale, 0.0)
    length = _norm(d) + x.new_full((), guard) * scale
    move = d * torch.where(length > 0, step / length, 0.0)
    move = move if unit is None else move * unit
    u = x_adv - x + move
    norm = _norm(u if unit is None else u / unit)
    moved = torch.where(norm > radius, x + u * (radius / norm), x_adv + move)
    return moved.clamp(lower, upper).view(direction.shape)  # type: ignore[arg-type]


def _step_inplace_reference(*arguments) -> None:
    *shared, box, guard = arguments
    call = StepCall(*shared)
    direction = step_reference.direction_of(call, box, in_units=True)
    step_reference.store(call, _moved(call, direction, guard, box))


def _launch_step_inplace(*arguments) -> None:
    *shared, box, guard = arguments
    call = StepCall(*shared)
    x_adv = call.x_adv
    partials = registry.kernels("steps.l2").workspace_shape(
        len(x_adv), x_adv[0].numel() if len(x_adv) else 0, box
    )
    workspace = None
    if partials is not None:
        workspace = torch.empty(partials, dtype=layout.compute_dtype(x_adv), device=x_adv.device)
    registry.kernels("steps.l2").launch_l2_step(
        *call, box, guard, workspace=workspace, **step_arguments.launch_layout(call)
    )


_STEP_INPLACE = registry.register(
    f"l2_step_(Tensor(a!) x_adv, Tensor grad, Tensor x, {step_arguments.STEP_SCHEMA}, "
    "Tensor? box, float guard) -> ()",
    reference=_step_inplace_reference,
    compiled="steps.loops_l2",
    launch=_launch_step_inplace,
    shared=("mean", "std"),
    tolerance=1e-6,
)


def l2_step_(
    x_adv: torch.Tensor,
    grad: torch.Tensor,
    x: torch.Tensor,
    *,
    step_size: float | torch.Tensor,
    eps: float | torch.Tensor,
    bounds: tuple[float, float] | None = (0.0, 1.0),
    guard: float = 0.0,
    slots: torch.Tensor | None = None,
    momentum: torch.Tensor | None = None,
    decay: float = 1.0,
    model_input: torch.Tensor | None = None,
    mean: torch.Tensor | None = None,
    std: torch.Tensor | None = None,
    box: torch.Tensor | None = None,
) -> torch.Tensor:
    """One L2 PGD step, in place: u = x_adv - x + step_size * grad / (||grad||_2 + guard), then
    x_adv = clip(x + u * min(1, eps / ||u||_2)) to bounds.

    x_adv, grad, x: (B, ...), same shape, dtype and device; norms are per sample. step_size, eps: in
    input units (0.5 for images in [0, 1]); floats or (B,). A negative step_size descends. A NaN
    gradient counts as 0; a sample whose gradient is 0 or infinite takes no step, and one whose
    gradient is tiny (1e-30) a full one. guard: what peers add to the norm (1e-10 in torchattacks).
    bounds=None clamps nothing. momentum, model_input, mean, std, slots: as in `linf_step_`; the
    momentum's direction is m / ||m||_2. box: (B, 2, D), what each element may be, in place of
    bounds; one whose bounds meet does not count in the norms. With units, (B, 3, D), the step is
    that of x_adv / unit: its gradient, its lengths. Returns x_adv. Raises ValueError if shapes,
    dtypes or devices differ.

    Example: `fastadv.ops.l2_step_(x_adv, grad, x, step_size=0.1, eps=0.5)`.
    Source: Madry et al. 2018, arXiv:1706.06083; PGDL2 of torchattacks. Unlike there, a point inside
    the ball is x_adv + step, not x + (x_adv + step - x): a zero step changes no bit.
    """
    reach = step_arguments.reach(step_size, eps, bounds, x)
    state = slots, momentum, decay, model_input, mean, std
    if box is not None:
        boxes.check_box(box, x_adv)
    call = StepCall(x_adv, grad, x, *reach, *state)
    return step_arguments.step_in_place(_STEP_INPLACE, call, box, guard)


def l2_step(
    x_adv: torch.Tensor,
    grad: torch.Tensor,
    x: torch.Tensor,
    *,
    step_size: float | torch.Tensor,
    eps: float | torch.Tensor,
    bounds: tuple[float, float] | None = (0.0, 1.0),
    guard: float = 0.0,
) -> torch.Tensor:
    """`l2_step_` on a copy of x_adv.

    Example: `x_adv = fastadv.ops.l2_step(x_adv, grad, x, step_size=0.1, eps=0.5)`.
    """
    out = step_arguments.dense_copy(x_adv)
    return l2_step_(out, grad, x, step_size=step_size, eps=eps, bounds=bounds, guard=guard)


def l2_step_reference(
    x_adv: torch.Tensor,
    grad: torch.Tensor,
    x: torch.Tensor,
    *,
    step_size: float | torch.Tensor,
    eps: float | torch.Tensor,
    bounds: tuple[float, float] | None = (0.0, 1.0),
    guard: float = 0.0,
) -> torch.Tensor:
    """The eager twin of `l2_step`: it defines the result up to rounding (contract C1)."""
    call = StepCall(x_adv, grad, x, *step_arguments.reach(step_size, eps, bounds, x))
    return _moved(call, step_reference.direction_of(call), guard).to(x_adv.dtype)
