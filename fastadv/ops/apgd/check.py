"""APGD's check of its progress as an op: it adapts the step size and asks for restarts."""

import torch

from fastadv.kernels import slots
from fastadv.kernels.apgd import progress as apgd_progress
from fastadv.ops import doubles, registry
from fastadv.ops.apgd import cpu as apgd_cpu
from fastadv.ops.apgd import rows as apgd_rows


def _check_reference(progress, step_size, loss, best_loss, slot_state, checkpoints, rho) -> None:
    columns = progress.unbind(1)
    active = slot_state[:, slots.ACTIVE] != 0
    t = (slot_state[:, slots.STEP] - 1).clamp_(0, len(checkpoints) - 1)
    period = checkpoints.index_select(0, t)
    first = t == 0
    checks = (period > 0).logical_and_(~first)
    fresh = first | checks
    increases = columns[apgd_progress.INCREASES] + (loss > columns[apgd_progress.PREVIOUS_LOSS])
    fails = increases <= (period.to(doubles.widest(period)) * rho).to(progress.dtype)
    stuck = columns[apgd_progress.CHECKED_BEST] >= best_loss
    stuck.logical_and_(columns[apgd_progress.REDUCED] == 0)
    halves = fails.logical_or_(stuck).logical_and_(checks)
    flag = halves.to(progress.dtype)
    updated = [progress.new_empty(0)] * apgd_progress.WIDTH
    updated[apgd_progress.PREVIOUS_LOSS] = loss.masked_fill(first, 0.0)
    updated[apgd_progress.INCREASES] = increases.masked_fill_(fresh, 0.0)
    checked_best = torch.where(fresh, best_loss, columns[apgd_progress.CHECKED_BEST])
    updated[apgd_progress.CHECKED_BEST] = checked_best
    reduced = torch.where(checks, flag, columns[apgd_progress.REDUCED]).masked_fill_(first, 1.0)
    updated[apgd_progress.REDUCED] = reduced
    updated[apgd_progress.RESTORE] = flag
    torch.where(active[:, None], torch.stack(updated, 1), progress, out=progress)
    torch.where(halves.logical_and_(active), step_size * 0.5, step_size, out=step_size)


_CHECK = registry.register(
    "apgd_check_(Tensor(a!) progress, Tensor(b!) step_size, Tensor loss, Tensor best_loss, "
    "Tensor slots, Tensor checkpoints, float rho) -> ()",
    reference=_check_reference,
    cpu=apgd_cpu.check,
    compiled="apgd.loops_check",
    launch=lambda *arguments: registry.kernels("apgd.progress_step").launch_apgd_check(*arguments),
    shared=("checkpoints",),
)


def apgd_check_(
    progress: torch.Tensor,
    step_size: torch.Tensor,
    loss: torch.Tensor,
    best_loss: torch.Tensor,
    slots: torch.Tensor,
    checkpoints: torch.Tensor,
    *,
    rho: float = 0.75,
) -> None:
    """APGD's check after an evaluation, in place: halve step_size, and ask for a restart from the
    best iterate, where too few of the last k losses rose or nothing did since a check.

    progress: (B, 5), columns of `fastadv.kernels.apgd.progress`, undefined before a slot's first
    evaluation. step_size, loss, best_loss: (B,). All are in the compute dtype, float64 for float64
    images, else float32. slots: (B, 5) int32, as `loss_head_` leaves it; inactive rows are left as
    they are. checkpoints: (steps + 1,) int32, `apgd_checkpoints(steps)`. A row whose evaluation t
    has checkpoints[t] = k > 0 is halved if at most rho * k losses rose, or if best_loss has not
    risen since the last check and that one did not halve. One launch. Raises ValueError if shapes,
    dtypes or devices differ.

    As in the authors' code the loss of the start iterate counts as 0 when the second one is
    compared with it.

    Example: `apgd_check_(progress, step_size, loss, best_loss, slots, checkpoints)`.
    Source: Croce and Hein 2020, arXiv:2003.01690, section 3.1.
    """
    apgd_rows.check_state(loss, slots, progress)
    apgd_rows.check_rows(
        progress, progress.dtype, step_size=step_size, loss=loss, best_loss=best_loss
    )
    if checkpoints.ndim != 1 or checkpoints.dtype != torch.int32 or len(checkpoints) == 0:
        raise ValueError(
            f"checkpoints must be (steps + 1,) int32; got {tuple(checkpoints.shape)} "
            f"{checkpoints.dtype}"
        )
    _CHECK(progress, step_size, loss, best_loss, slots, checkpoints.contiguous(), rho)
