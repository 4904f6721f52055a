"""APGD as ops: the check that adapts the step size, and the L-infinity step."""

from collections.abc import Sequence

import torch

from fastadv.kernels import slots
from fastadv.kernels.apgd import progress as apgd_progress
from fastadv.ops import layout, registry
from fastadv.ops.apgd import cpu as apgd_cpu
from fastadv.ops.apgd import rows as apgd_rows
from fastadv.ops.steps import arguments as step_arguments

_TILE = 65536  # measured: 16384 and 262144 take half as long again, at 64 x 3072

STEP_SCHEMA = (
    "Tensor(a!) x_adv, Tensor(b!) x_previous, Tensor(c!) x_best, Tensor(d!) grad_best, "
    "Tensor grad, Tensor x, Tensor step_size, Tensor eps, float lo, float hi, Tensor slots, "
    "Tensor progress, Tensor? correct, Tensor(e!)? x_hit"
)


def _check_reference(progress, step_size, loss, best_loss, slot_state, checkpoints, rho) -> None:
    columns = progress.unbind(1)
    active = slot_state[:, slots.ACTIVE] != 0
    t = (slot_state[:, slots.STEP] - 1).clamp_(0, len(checkpoints) - 1)
    period = checkpoints.index_select(0, t)
    first = t == 0
    checks = (period > 0).logical_and_(~first)
    fresh = first | checks
    increases = columns[apgd_progress.INCREASES] + (loss > columns[apgd_progress.PREVIOUS_LOSS])
    fails = increases <= (period.double() * rho).to(progress.dtype)
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


def _launch_check(progress, step_size, loss, best_loss, slot_state, checkpoints, rho) -> None:
    from fastadv.kernels.apgd.progress_step import launch_apgd_check

    launch_apgd_check(progress, step_size, loss, best_loss, slot_state, checkpoints, rho)


_CHECK = registry.register(
    "apgd_check_(Tensor(a!) progress, Tensor(b!) step_size, Tensor loss, Tensor best_loss, "
    "Tensor slots, Tensor checkpoints, float rho) -> ()",
    reference=_check_reference,
    cpu=apgd_cpu.check,
    launch=_launch_check,
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


def _linf_tile(turn, step, radius, lo, hi, kept, share, images, x_hit) -> None:
    x_adv, x_previous, x_best, grad_best, grad, x = images
    apgd_rows.put(x_best, turn.improved, x_adv)
    apgd_rows.put(grad_best, turn.improved, grad)
    if x_hit is not None:
        apgd_rows.put(x_hit, turn.hit, x_adv)
    start = apgd_rows.pick(turn.restore, x_best, x_adv)
    dtype = layout.compute_dtype(x_adv)
    z, x = start.to(dtype), x.to(dtype)
    sign = apgd_rows.pick(turn.restore, grad_best, grad).to(dtype).sign_()  # sign(NaN) = 0
    # clamped bounds give the same bits as a clamp after them: both are monotonous
    lower, upper = (x - radius).clamp_(lo, hi), (x + radius).clamp_(lo, hi)
    moved = torch.addcmul(z, sign, step)  # one rounding or two: the product is exact
    torch.clamp(moved, lower, upper, out=moved).sub_(z).mul_(share).add_(z)
    inertia = apgd_rows.cleared(torch.sub(z, x_previous, out=sign), kept).mul_(0.25)
    torch.clamp(moved.add_(inertia), lower, upper, out=moved)
    apgd_rows.put(x_previous, turn.active, start)
    apgd_rows.put(x_adv, turn.active, moved.to(x_adv.dtype))


def _linf_reference(
    x_adv,
    x_previous,
    x_best,
    grad_best,
    grad,
    x,
    step_size,
    eps,
    lo,
    hi,
    slot_state,
    progress,
    correct,
    x_hit,
) -> None:
    if x_adv.numel() == 0:
        return
    turn = apgd_rows.turn_of(slot_state, progress, correct)
    images = [apgd_rows.as_rows(t) for t in (x_adv, x_previous, x_best, grad_best, grad, x)]
    hits = None if x_hit is None else apgd_rows.as_rows(x_hit)
    step, radius = step_size[:, None], eps[:, None]
    kept = apgd_rows.bit_mask(~turn.first, step.dtype)  # x_previous is undefined at first
    share = torch.full_like(step, 0.75).masked_fill_(turn.first, 1.0)
    for rows, columns in apgd_rows.tiles(len(x), len(images[0][0]), _TILE, split_rows=True):
        _linf_tile(
            turn.rows(rows),
            step[rows],
            radius[rows],
            lo,
            hi,
            kept[rows],
            share[rows],
            [t[rows, columns] for t in images],
            None if hits is None else hits[rows, columns],
        )


def _launch_linf(
    x_adv,
    x_previous,
    x_best,
    grad_best,
    grad,
    x,
    step_size,
    eps,
    lo,
    hi,
    slot_state,
    progress,
    correct,
    x_hit,
) -> None:
    from fastadv.kernels.apgd.linf import launch_apgd_linf

    launch_apgd_linf(
        x_adv,
        x_previous,
        x_best,
        grad_best,
        grad,
        x,
        step_size=step_size,
        eps=eps,
        lo=lo,
        hi=hi,
        slot_state=slot_state,
        progress=progress,
        correct=correct,
        x_hit=x_hit,
    )


_LINF = registry.register(
    f"apgd_linf_step_({STEP_SCHEMA}) -> ()",
    reference=_linf_reference,
    cpu=apgd_cpu.linf_step,
    launch=_launch_linf,
)


def step_in_place(
    op,
    x_adv,
    x_previous,
    x_best,
    grad_best,
    grad,
    x,
    step_size,
    eps,
    bounds,
    slot_state,
    progress,
    correct,
    x_hit,
) -> None:
    """Check the arguments, bring `grad` to x_adv's layout and call `op`."""
    lo, hi = step_arguments.check_bounds(bounds)
    grad = apgd_rows.checked_images(
        x_adv, grad, x_previous=x_previous, x_best=x_best, grad_best=grad_best, x=x, x_hit=x_hit
    )
    apgd_rows.check_state(x_adv, slot_state, progress)
    apgd_rows.check_rows(x, progress.dtype, step_size=step_size, eps=eps)
    apgd_rows.check_hit(x, correct, x_hit)
    op(
        x_adv,
        x_previous,
        x_best,
        grad_best,
        grad,
        x,
        step_size,
        eps,
        lo,
        hi,
        slot_state,
        progress,
        correct,
        x_hit,
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
) -> None:
    """One L-infinity APGD step, in place: x_adv = P(z + a * (P(z + step_size * sign(g)) - z) +
    (1 - a) * (z - x_previous)), x_previous = z; P clips to the eps-ball around x, then to bounds.

    x_adv, x_previous, x_best, grad_best, x, x_hit: (B, ...), same shape, dtype, device and dense
    layout; grad: the same in any layout. Before a slot's first step x_previous, x_best, grad_best
    and x_hit may hold anything. step_size, eps: (B,), in input units. slots: (B, 5) int32, as
    `loss_head_` leaves it; progress: (B, 5), as `apgd_check_` does. correct: (B,) bool.

    A row that improved first becomes x_best, its gradient grad_best; one that is misclassified
    becomes x_hit. (z, g) is (x_best, grad_best) where RESTORE is set, else (x_adv, grad); a is 1 in
    a slot's first step, then 0.75. A NaN gradient counts as 0. Inactive rows are left as they are.
    One launch. Raises ValueError if shapes, dtypes, devices or layouts differ.

    Example: `apgd_linf_step_(x_adv, x_previous, x_best, grad_best, grad, x, step_size=step_size,
    eps=eps, bounds=(0.0, 1.0), slots=slots, progress=progress)`.
    Source: Croce and Hein 2020, arXiv:2003.01690, section 3; bit for bit its authors' code.
    """
    step_in_place(
        _LINF,
        x_adv,
        x_previous,
        x_best,
        grad_best,
        grad,
        x,
        step_size,
        eps,
        bounds,
        slots,
        progress,
        correct,
        x_hit,
    )
