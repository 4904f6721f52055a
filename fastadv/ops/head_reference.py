"""The loss head in eager torch: it defines what the kernel must give."""

from typing import NamedTuple

import torch

from fastadv.kernels import slots as slot_columns
from fastadv.ops import layout, reduction

_DLR_GUARD = 1e-12  # AutoAttack's: z_pi1 = z_pi3 must not divide by zero


class _Ascended(NamedTuple):
    """A loss per row, its gradient, and the gap z_up - z_down of the losses that have one."""

    loss: torch.Tensor
    grad: torch.Tensor
    gap: torch.Tensor | None = None


def _at(z: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
    return z.gather(1, column[:, None])[:, 0]


def _ranked(z: torch.Tensor, count: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The `count` largest values and their columns, ties in ascending column order."""
    values, columns = z.sort(dim=1, descending=True, stable=True)
    return list(values[:, :count].unbind(1)), list(columns[:, :count].unbind(1))


def _one_hot_sum(z: torch.Tensor, *terms: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rows that hold, for each (column, weight) in turn, `weight` added at `column`."""
    grad = torch.zeros_like(z)
    for column, weight in terms:
        grad.scatter_add_(1, column[:, None], weight[:, None])
    return grad


def _log_softmax(z: torch.Tensor) -> torch.Tensor:
    shifted = z - z.amax(1, keepdim=True)
    return shifted - reduction.tree_sum(shifted.exp()).contiguous().log()[:, None]


def _cross_entropy(z: torch.Tensor, own: torch.Tensor, smoothing: float, sign: int) -> _Ascended:
    top = z.amax(1)
    exponents = (z - top[:, None]).exp()
    total = reduction.tree_sum(exponents).contiguous()
    loss = total.log() + (top - _at(z, own))
    if smoothing > 0.0:
        spread = reduction.tree_sum(top[:, None] - z) / z.shape[1]
        loss = (1.0 - smoothing) * loss + smoothing * (total.log() + spread)
    floor = torch.full_like(z, smoothing / z.shape[1])
    wanted = floor.scatter(1, own[:, None], 1.0 - smoothing + smoothing / z.shape[1])
    return _Ascended(sign * loss, sign * (exponents / total[:, None] - wanted))


def _margin(z: torch.Tensor, own: torch.Tensor, kappa: float, targeted: bool) -> _Ascended:
    values, columns = _ranked(z, 2)
    leads = columns[0] == own
    rival = torch.where(leads, columns[1], columns[0])
    rival_z = torch.where(leads, values[1], values[0])
    up, down = (own, rival) if targeted else (rival, own)
    gap = _at(z, own) - rival_z if targeted else rival_z - _at(z, own)
    slope = (gap <= kappa).to(z.dtype)
    return _Ascended(gap.clamp(max=kappa), _one_hot_sum(z, (up, slope), (down, -slope)), gap)


def _dlr(z: torch.Tensor, label: torch.Tensor) -> _Ascended:
    (top, second, third), columns = _ranked(z, 3)
    leads = columns[0] == label
    rival = torch.where(leads, columns[1], columns[0])
    gap = torch.where(leads, second, top) - _at(z, label)
    width = top - third + _DLR_GUARD
    loss, slope = gap / width, 1.0 / width
    bend = loss / width
    terms = (rival, slope), (label, -slope), (columns[0], -bend), (columns[2], bend)
    return _Ascended(loss, _one_hot_sum(z, *terms), gap)


def _targeted_dlr(z: torch.Tensor, label: torch.Tensor, target: torch.Tensor) -> _Ascended:
    (top, _, third, fourth), (first, _, third_column, fourth_column) = _ranked(z, 4)
    gap = _at(z, target) - _at(z, label)
    width = top - 0.5 * (third + fourth) + _DLR_GUARD
    loss, slope = gap / width, 1.0 / width
    bend = loss / width
    terms = (target, slope), (label, -slope), (first, -bend)
    terms += (third_column, 0.5 * bend), (fourth_column, 0.5 * bend)
    return _Ascended(loss, _one_hot_sum(z, *terms), gap)


def _difference(z: torch.Tensor, label: torch.Tensor, target: torch.Tensor) -> _Ascended:
    gap = _at(z, target) - _at(z, label)
    one = torch.ones_like(gap)
    return _Ascended(gap, _one_hot_sum(z, (target, one), (label, -one)), gap)


def _kl(z: torch.Tensor, reference: torch.Tensor) -> _Ascended:
    q = reference.to(z.dtype)
    absent = q == 0.0
    log_probability = _log_softmax(z)
    log_ratio = torch.where(absent, 1.0, q).log() - log_probability
    terms = q * log_ratio.masked_fill(absent, 0.0)
    exponents = (z - z.amax(1, keepdim=True)).exp()
    probability = exponents / reduction.tree_sum(exponents)[:, None]
    return _Ascended(reduction.tree_sum(terms), probability - q)


def _ascended(
    z: torch.Tensor, label: torch.Tensor, target: torch.Tensor | None,
    reference: torch.Tensor | None, kind: str, parameter: float,
) -> _Ascended:  # fmt: skip
    own = label if target is None else target
    if kind == "cross_entropy":
        return _cross_entropy(z, own, parameter, 1 if target is None else -1)
    if kind == "margin":
        return _margin(z, own, parameter, target is not None)
    if kind == "dlr":
        return _dlr(z, label) if target is None else _targeted_dlr(z, label, target)
    if kind == "difference":
        assert target is not None, "checked by the wrappers"
        return _difference(z, label, target)
    assert kind == "kl" and reference is not None, "checked by the wrappers"
    return _kl(z, reference)


def loss_head_in_place(
    logits: torch.Tensor, labels: torch.Tensor, targets: torch.Tensor | None,
    reference: torch.Tensor | None, loss: torch.Tensor, grad: torch.Tensor | None,
    prediction: torch.Tensor, correct: torch.Tensor, slots: torch.Tensor | None,
    best_loss: torch.Tensor | None, kind: str, parameter: float, steps: int, first_step: int,
    stop_early: bool,
) -> None:  # fmt: skip
    """The arguments of the op `fastadv::loss_head_`, by position."""
    z = logits.to(layout.compute_dtype(logits)).contiguous()
    classes = z.shape[1]
    valid = (labels >= 0) & (labels < classes)
    if targets is not None:
        valid &= (targets >= 0) & (targets < classes)
        targets = targets.clamp(0, classes - 1)
    has_nan = z.isnan().any(1)
    usable = valid & ~has_nan
    predicted = logits.argmax(1)
    prediction.copy_(predicted)
    correct.copy_(predicted == labels)
    labels = labels.clamp(0, classes - 1)
    fooled = (predicted != labels if targets is None else predicted == targets) & usable
    value = loss
    if kind != "none":
        ascended = _ascended(z, labels, targets, reference, kind, parameter)
        value = torch.where(valid, ascended.loss, 0.0).masked_fill(has_nan, float("nan"))
        if grad is not None:
            limit = torch.finfo(grad.dtype).max  # DLR's 1 / 1e-12 on ties would be inf in fp16
            kept = usable[:, None] & ascended.grad.isfinite()
            grad.copy_(torch.where(kept, ascended.grad, 0.0).clamp(-limit, limit))
        if kind == "margin" and parameter > 0.0:
            assert ascended.gap is not None, "every margin has one"
            fooled &= ascended.gap >= parameter
    if slots is not None:
        active = _advance_slots(
            slots, best_loss, value, fooled, has_nan, valid, steps, first_step, stop_early
        )
        value = torch.where(active, value, loss)
    if kind != "none":
        loss.copy_(value)


def _advance_slots(
    slots: torch.Tensor, best_loss: torch.Tensor | None, loss: torch.Tensor, fooled: torch.Tensor,
    has_nan: torch.Tensor, valid: torch.Tensor, steps: int, first_step: int, stop_early: bool,
) -> torch.Tensor:  # fmt: skip
    """Evaluate the iterates: successes, faults, best losses, and which slots step again.

    Returns which slots were active before: only they are written.
    """
    columns = (
        slot_columns.STEP,
        slot_columns.SUCCESS_STEP,
        slot_columns.ACTIVE,
        slot_columns.FAULT,
    )
    assert columns == (0, 1, 2, 3), "the four columns that every evaluation writes come first"
    state = slots[:, : len(columns)]
    step, success_step, active, fault = state.unbind(1)
    was_active = active != 0
    counted = step >= first_step
    success_step = torch.where(fooled & counted & (success_step < 0), step, success_step)
    fault = fault | has_nan * slot_columns.FAULT_NAN_LOGITS
    fault = fault | ~valid * slot_columns.FAULT_BAD_LABEL
    goes_on = step < steps
    if stop_early:
        goes_on = goes_on & (success_step < 0)
    updated = torch.stack((step + goes_on, success_step, goes_on.int(), fault.int()), 1)
    state.copy_(torch.where(was_active[:, None], updated, state))
    if best_loss is not None:
        improved = was_active & counted & (loss > best_loss)
        best_loss.copy_(torch.where(improved, loss, best_loss))
        slots[:, slot_columns.IMPROVED] = improved.int()
    return was_active
