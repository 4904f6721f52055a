"""L1-APGD as ops: bookkeeping of sparsity, step size and phases, then the sparse L1 step."""

from collections.abc import Sequence

import torch

from fastadv.kernels import slots
from fastadv.ops import layout, registry, rounding
from fastadv.ops.apgd import rows as apgd_rows
from fastadv.ops.apgd import schedule as apgd_schedule
from fastadv.ops.steps import arguments as step_arguments
from fastadv.ops.steps import l1


def _check_reference(
    x_adv,
    x_best,
    grad_best,
    grad,
    x,
    step_size,
    sparsity,
    phase_eps,
    support,
    eps,
    best_loss,
    slot_state,
    plan,
    radius,
    correct,
    x_hit,
) -> None:
    if x_adv.numel() == 0:
        return
    adv, best, best_grad, direction, clean = (
        apgd_rows.as_rows(t) for t in (x_adv, x_best, grad_best, grad, x)
    )
    turn = apgd_rows.turn_of(slot_state, None, correct)
    apgd_rows.put(best, turn.improved, adv)
    apgd_rows.put(best_grad, turn.improved, direction)
    if x_hit is not None and turn.hit is not None:
        apgd_rows.put(apgd_rows.as_rows(x_hit), turn.hit, adv)

    active, dtype = turn.active[:, 0], step_size.dtype
    t = (slot_state[:, slots.STEP] - 1).clamp_(0, len(plan) - 1)
    entry = plan.index_select(0, t)
    checks, moves_on = entry == apgd_schedule.CHECK, entry == apgd_schedule.NEXT_PHASE
    given, random = entry == apgd_schedule.GIVEN_START, entry == apgd_schedule.RANDOM_START
    starts = given | random
    ball = radius.index_select(0, t).to(dtype) * eps
    size = adv.shape[1]
    evaluated = (adv != clean).sum(1)  # integers: in any order
    count = torch.where(given, evaluated, (best != clean).sum(1)).to(dtype)
    count = count.masked_fill_(random, size)
    # a support that was 0 divides to NaN or infinity: it has not shrunk
    shrunk = (count / support < 0.95).logical_and_(checks)
    restores = (shrunk | moves_on).logical_and_(active)[:, None]
    apgd_rows.put(adv, restores, best)
    apgd_rows.put(direction, restores, best_grad)

    decayed = torch.maximum(rounding.divided(step_size, 1.5), rounding.divided(ball, 10.0))
    decayed = torch.minimum(decayed, ball)
    step = torch.where(checks, torch.where(shrunk, ball, decayed), step_size)
    step = torch.where(starts, ball, step).masked_fill_(moves_on, 0.0)
    share = rounding.divided(rounding.divided(count, size), 1.5).masked_fill_(random, 0.2)
    torch.where(active, step, step_size, out=step_size)
    torch.where(active, ball, phase_eps, out=phase_eps)
    updates = active & (checks | starts)
    torch.where(updates, share, sparsity, out=sparsity)
    torch.where(updates, count, support, out=support)
    best_loss.masked_fill_(active & moves_on, float("-inf"))


_CHECK = registry.register(
    "apgd_l1_check_(Tensor(a!) x_adv, Tensor(b!) x_best, Tensor(c!) grad_best, Tensor(d!) grad, "
    "Tensor x, Tensor(e!) step_size, Tensor(f!) sparsity, Tensor(g!) phase_eps, "
    "Tensor(h!) support, Tensor eps, Tensor(i!) best_loss, Tensor slots, Tensor plan, "
    "Tensor radius, Tensor? correct, Tensor(j!)? x_hit) -> ()",
    reference=_check_reference,
    launch=lambda *arguments: registry.kernels("apgd.l1").launch_apgd_l1_check(*arguments),
    shared=("plan", "radius"),
)


def _checked_tables(plan: torch.Tensor, radius: torch.Tensor) -> None:
    if plan.ndim != 1 or plan.dtype != torch.int32 or not len(plan):
        raise ValueError(f"plan must be (steps + 1,) int32; got {tuple(plan.shape)} {plan.dtype}")
    if radius.shape != plan.shape or not radius.is_floating_point():
        raise ValueError(
            f"radius must be a floating-point tensor of plan's shape {tuple(plan.shape)}; got "
            f"{tuple(radius.shape)} {radius.dtype}"
        )


def apgd_l1_step_(
    x_adv: torch.Tensor,
    x_best: torch.Tensor,
    grad_best: torch.Tensor,
    grad: torch.Tensor,
    x: torch.Tensor,
    *,
    step_size: torch.Tensor,
    sparsity: torch.Tensor,
    phase_eps: torch.Tensor,
    support: torch.Tensor,
    eps: torch.Tensor,
    bounds: Sequence[float] | None,
    best_loss: torch.Tensor,
    slots: torch.Tensor,
    plan: torch.Tensor,
    radius: torch.Tensor,
    correct: torch.Tensor | None = None,
    x_hit: torch.Tensor | None = None,
) -> None:
    """One L1-APGD step, in place: `l1_step_` from the iterate or the best one, with step_size,
    sparsity and radius as the plan and the support ||x_best - x||_0 of each sample set them.

    x_adv, x_best, grad_best, x, x_hit: (B, ...), same shape, dtype, device and dense layout; grad:
    the same in any layout, overwritten by grad_best in rows that restart from the best iterate.
    State that the op keeps, (B,), any finite numbers before a slot's first step: step_size,
    sparsity (the share of elements that move), phase_eps (radius of the current ball), support.
    eps, best_loss: (B,). plan (steps + 1,) int32 and radius (steps + 1,): `apgd_l1_plan`, by the
    index of the evaluation. slots: (B, 5) int32, as `loss_head_` leaves it. correct: (B,) bool.

    A row that improved first becomes x_best, its gradient grad_best; one that is misclassified
    becomes x_hit, which in a phase at 3 or 2 eps lies outside the eps-ball. At a check the step
    size returns to phase_eps and the row restarts from the best iterate where the support shrank
    below 95 %; elsewhere it is divided by 1.5, down to a tenth of phase_eps. At the end of a phase
    best_loss becomes -inf and x_adv the projection of x_best. Inactive rows are left as they are.
    Two launches. Raises ValueError if shapes, dtypes, devices or layouts differ.

    Example: `apgd_l1_step_(x_adv, x_best, grad_best, grad, x, step_size=step_size,
    sparsity=sparsity, phase_eps=phase_eps, support=support, eps=eps, bounds=(0.0, 1.0),
    best_loss=best_loss, slots=slots, plan=plan, radius=radius)`.
    Source: Croce and Hein 2021, arXiv:2103.01208, section 3, and its authors' code. Unlike there,
    an element that the projection puts back has exactly its clean value, and so no support.
    """
    step_arguments.check_bounds(bounds)
    grad = apgd_rows.checked_images(
        x_adv, grad, x_best=x_best, grad_best=grad_best, x=x, x_hit=x_hit
    )
    apgd_rows.check_state(x_adv, slots, None)
    apgd_rows.check_rows(
        x,
        layout.compute_dtype(x),
        step_size=step_size,
        sparsity=sparsity,
        phase_eps=phase_eps,
        support=support,
        eps=eps,
        best_loss=best_loss,
    )
    apgd_rows.check_hit(x, correct, x_hit)
    _checked_tables(plan, radius)
    _CHECK(
        x_adv,
        x_best,
        grad_best,
        grad,
        x,
        step_size,
        sparsity,
        phase_eps,
        support,
        eps,
        best_loss,
        slots,
        plan.contiguous(),
        radius.contiguous(),
        correct,
        x_hit,
    )
    l1.l1_step_(
        x_adv,
        grad,
        x,
        step_size=step_size,
        eps=phase_eps,
        bounds=None if bounds is None else (bounds[0], bounds[1]),
        sparsity=sparsity,
        slots=slots,
    )
