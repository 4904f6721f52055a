"""The sparse L1 step as an op: ascent along the largest gradients, then the exact projection."""

import torch

from fastadv.ops import layout, reduction, registry
from fastadv.ops.steps import arguments as step_arguments
from fastadv.ops.steps import l1_projection
from fastadv.ops.steps import reference as step_reference
from fastadv.ops.steps.arguments import ScalarOrRows, StepCall


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


def _moved(call: StepCall, direction: torch.Tensor, sparsity: ScalarOrRows) -> torch.Tensor:
    if call.x_adv.numel() == 0:
        return call.x_adv
    start, d, clean = l1_projection.as_rows(call.x_adv, direction, call.x)
    step = layout.column(call.step_size, call.step_rows, clean)
    radius = layout.column(call.eps, call.eps_rows, clean)
    move = _sparse_move(d, step, layout.column(*sparsity, clean))
    moved = l1_projection.project_rows(start, move, clean, radius, call.lo, call.hi)
    return moved.view(call.x_adv.shape)


def _step_inplace_reference(*arguments) -> None:
    *shared, sparsity, sparsity_rows = arguments
    call = StepCall(*shared)
    share = ScalarOrRows(sparsity, sparsity_rows)
    step_reference.store(call, _moved(call, step_reference.direction_of(call), share))


def _launch_step_inplace(*arguments) -> None:
    *shared, sparsity, sparsity_rows = arguments
    call = StepCall(*shared)
    registry.kernels("steps.l1").launch_l1(
        call.x_adv,
        *call,
        sparsity,
        sparsity_rows,
        ascends=True,
        **step_arguments.launch_layout(call),
    )


_STEP_INPLACE = registry.register(
    f"l1_step_(Tensor(a!) x_adv, Tensor grad, Tensor x, {step_arguments.STEP_SCHEMA}, "
    "float sparsity, Tensor? sparsity_rows) -> ()",
    reference=_step_inplace_reference,
    compiled="steps.loops_l1",
    launch=_launch_step_inplace,
    shared=("mean", "std"),
    tolerance=1e-6,
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
    reach = step_arguments.reach(step_size, eps, bounds, x)
    state = slots, momentum, decay, model_input, mean, std
    return step_arguments.step_in_place(
        _STEP_INPLACE, StepCall(x_adv, grad, x, *reach, *state), *share
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
    out = step_arguments.dense_copy(x_adv)
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
    call = StepCall(x_adv, grad, x, *step_arguments.reach(step_size, eps, bounds, x))
    share = step_arguments.scalar_or_rows("sparsity", sparsity, x)
    return _moved(call, step_reference.direction_of(call), share).to(x_adv.dtype)
