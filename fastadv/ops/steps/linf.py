"""The L-infinity PGD step as ops: sign ascent, eps-box, pixel clamp; optional momentum."""

import torch

from fastadv.ops import layout, registry
from fastadv.ops.steps import arguments as step_arguments
from fastadv.ops.steps import box as boxes
from fastadv.ops.steps import reference as step_reference
from fastadv.ops.steps.arguments import StepCall


def _moved(
    call: StepCall, direction: torch.Tensor, box: torch.Tensor | None = None
) -> torch.Tensor:
    """min(max(x_adv + step * sign(direction), x - eps), x + eps) clamped to [lo, hi]."""
    dtype = layout.compute_dtype(call.x_adv)
    x_adv, x = call.x_adv.to(dtype), call.x.to(dtype)
    step = call.step_size if call.step_rows is None else layout.per_sample(call.step_rows, x)
    if box is not None:
        unit = boxes.unit_of(box, x_adv)
        moved = direction.sign().mul_(step if unit is None else unit * step).add_(x_adv)
        return torch.clamp(moved, *boxes.bounds_of(box, x_adv), out=moved)
    radius = call.eps if call.eps_rows is None else layout.per_sample(call.eps_rows, x)
    # two buffers, written over and over: fresh ones cost page faults, half of the time of a step
    moved = direction.sign().mul_(step).add_(x_adv)
    bound = x - radius
    torch.maximum(moved, bound, out=moved)
    torch.minimum(moved, torch.add(x, radius, out=bound), out=moved)
    return moved.clamp_(call.lo, call.hi)


def _sign_source(call: StepCall, box: torch.Tensor | None = None) -> torch.Tensor:
    """What has the signs of the direction: sign(NaN) = 0, and 1 / std > 0."""
    if call.momentum is not None:
        return step_reference.direction_of(call, box)
    return call.grad.to(layout.compute_dtype(call.x_adv))


def _step_reference(*arguments) -> torch.Tensor:
    call = StepCall(*arguments)
    return _moved(call, _sign_source(call)).to(call.x_adv.dtype)


def _step_inplace_reference(*arguments) -> None:
    *shared, box = arguments
    call = StepCall(*shared)
    step_reference.store(call, _moved(call, _sign_source(call, box), box))


def _launch_step(*arguments) -> torch.Tensor:
    call = StepCall(*arguments)
    out = torch.empty_like(call.x_adv)
    registry.kernels("steps.linf").launch_linf_step(
        out, *call, None, inner=1, cross=False, channels_last=False
    )
    return out


def _launch_step_inplace(*arguments) -> None:
    *shared, box = arguments
    call = StepCall(*shared)
    registry.kernels("steps.linf").launch_linf_step(
        call.x_adv, *call, box, **step_arguments.launch_layout(call)
    )


_STEP = registry.register(
    "linf_step(Tensor x_adv, Tensor grad, Tensor x, float step_size, Tensor? step_rows, "
    "float eps, Tensor? eps_rows, float lo, float hi) -> Tensor",
    reference=_step_reference,
    launch=_launch_step,
    fake=lambda x_adv, *args: torch.empty_like(x_adv),
)
_STEP_INPLACE = registry.register(
    f"linf_step_(Tensor(a!) x_adv, Tensor grad, Tensor x, {step_arguments.STEP_SCHEMA}, "
    "Tensor? box) -> ()",
    reference=_step_inplace_reference,
    compiled="steps.loops_linf",
    launch=_launch_step_inplace,
    shared=("mean", "std"),
    tolerance_with={"momentum": 1e-6},  # whose mean is added up
)


def linf_step(
    x_adv: torch.Tensor,
    grad: torch.Tensor,
    x: torch.Tensor,
    *,
    step_size: float | torch.Tensor,
    eps: float | torch.Tensor,
    bounds: tuple[float, float] | None = (0.0, 1.0),
) -> torch.Tensor:
    """One L-infinity PGD step: clip(x_adv + step_size * sign(grad)) to the eps-ball around x and to
    bounds.

    x_adv, grad, x: (B, ...), same shape, dtype and device. step_size, eps: in input units (8/255
    for images in [0, 1]); floats or (B,). A negative step_size descends. sign(0) = 0 and a NaN
    gradient counts as 0. bounds=None clamps nothing. Raises ValueError if shapes, dtypes or devices
    differ.

    Example: `x_adv = fastadv.ops.linf_step(x_adv, grad, x, step_size=2/255, eps=8/255)`.
    Source: Madry et al. 2018, arXiv:1706.06083, section 2.1.
    """
    step_arguments.check_step_tensors(x_adv, grad, x)
    reach = step_arguments.reach(step_size, eps, bounds, x)
    memory_format = layout.dense_format(x_adv) or torch.contiguous_format
    x_adv, grad, x = (layout.in_format(t, memory_format) for t in (x_adv, grad, x))
    with torch.no_grad():  # a step is not differentiated through
        return _STEP(x_adv, grad, x, *reach)


def linf_step_reference(
    x_adv: torch.Tensor,
    grad: torch.Tensor,
    x: torch.Tensor,
    *,
    step_size: float | torch.Tensor,
    eps: float | torch.Tensor,
    bounds: tuple[float, float] | None = (0.0, 1.0),
) -> torch.Tensor:
    """The eager twin of `linf_step`: it defines the result, bit for bit."""
    return _step_reference(x_adv, grad, x, *step_arguments.reach(step_size, eps, bounds, x))


def linf_step_(
    x_adv: torch.Tensor,
    grad: torch.Tensor,
    x: torch.Tensor,
    *,
    step_size: float | torch.Tensor,
    eps: float | torch.Tensor,
    bounds: tuple[float, float] | None = (0.0, 1.0),
    slots: torch.Tensor | None = None,
    momentum: torch.Tensor | None = None,
    decay: float = 1.0,
    model_input: torch.Tensor | None = None,
    mean: torch.Tensor | None = None,
    std: torch.Tensor | None = None,
    box: torch.Tensor | None = None,
) -> torch.Tensor:
    """`linf_step` in place, returning x_adv: one launch, one read of each input, one write.

    momentum: (B, ...) float32, updated to m = decay * m + g / mean|g|, whose sign is then followed
    (MI-FGSM, Dong et al. 2018, arXiv:1710.06081; a zero gradient adds nothing). model_input:
    (B, C, ...) of any float dtype and dense layout, written in the same pass as
    (x_adv - mean) / std with mean, std (C,) float32; `grad` is then the gradient with respect to
    it. slots: the engine's (B, 5) int32 state; finished rows are left as they are. box: (B, 2, D),
    what each element may be, in place of eps and bounds: the result is clamp(x_adv + step_size *
    unit * sign(grad), lower, upper); (B, 3, D) gives the units, see `fastadv.ops.steps.box`.

    Example: `fastadv.ops.linf_step_(x_adv, grad, x, step_size=2/255, eps=8/255)`.
    """
    reach = step_arguments.reach(step_size, eps, bounds, x)
    state = slots, momentum, decay, model_input, mean, std
    if box is not None:
        boxes.check_box(box, x_adv)
    call = StepCall(x_adv, grad, x, *reach, *state)
    return step_arguments.step_in_place(_STEP_INPLACE, call, box)
