"""The loss head in eager torch: it defines what the kernel must give."""

import math
from typing import NamedTuple

import torch

from fastadv.kernels import slots as slot_columns
from fastadv.ops import layout, reduction, rounding

_DLR_GUARD = 1e-12  # AutoAttack's: z_pi1 = z_pi3 must not divide by zero
_RATIO_GUARD = 1e-8  # adversarial-library's
_SORTED_CLASSES = 16  # maxima one by one are faster above: 50 times at 1,000 classes


class _Rows(NamedTuple):
    """Rows of logits and what every loss asks of them; (B,), but for z: (B, C)."""

    z: torch.Tensor
    top: torch.Tensor  # the largest logit, NaN in a row with a NaN
    first: torch.Tensor  # its first column: the prediction
    label: torch.Tensor  # in [0, C), as target
    target: torch.Tensor | None
    unusable: torch.Tensor  # rows without a gradient: a NaN, or a label that is no class

    @property
    def own(self) -> torch.Tensor:
        return self.label if self.target is None else self.target


class _Rules(NamedTuple):
    """When a slot's success counts, when its best loss does, and when it ends."""

    steps: int
    first_step: int
    stop_early: bool
    best_from: int


def _at(z: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
    return z.gather(1, column[:, None])[:, 0]


def _ranked(rows: _Rows, count: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The `count` largest values and their columns, ties in ascending column order."""
    z = rows.z
    if z.shape[1] <= _SORTED_CLASSES:
        values, columns = z.sort(dim=1, descending=True, stable=True)
        return list(values[:, :count].unbind(1)), list(columns[:, :count].unbind(1))
    rest, free = z.clone(), z.new_ones(z.shape[0], count + 1)
    values, columns = [rows.top], [rows.first]
    while len(columns) < count:
        rest.scatter_(1, columns[-1][:, None], -math.inf)
        free.scatter_(1, columns[-1].clamp(max=count)[:, None], 0.0)
        value, column = rest.max(1)
        # where -inf is all that is left, the maximum may be a column that was taken before
        columns.append(torch.where(value == -math.inf, free.argmax(1), column))
        values.append(value)
    return values, columns


def _fill_one_hot(out: torch.Tensor, *terms: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Zeros and, for each (column, weight) in turn, `weight` added at `column`."""
    out.zero_()
    for column, weight in terms:
        out.scatter_add_(1, column[:, None], weight[:, None])


def _cross_entropy(rows: _Rows, smoothing: float, grad: torch.Tensor | None) -> torch.Tensor:
    z, top, unusable = rows.z, rows.top[:, None], rows.unusable[:, None]
    column, classes, descends = rows.own[:, None], z.shape[1], rows.target is not None
    exponents = (z - top).exp_()
    total = reduction.tree_sum(exponents).contiguous()
    log_total, total = total.log(), total[:, None]
    loss = (top - z.gather(1, column))[:, 0].add_(log_total)
    if smoothing > 0.0:
        spread = rounding.divided(reduction.tree_sum(top - z), classes)
        loss = (1.0 - smoothing) * loss + smoothing * (log_total + spread)
    if descends:
        loss.neg_()
    if grad is None:
        return loss
    at_own = (exponents.gather(1, column) / total).sub_(1.0 - smoothing + smoothing / classes)
    if smoothing > 0.0:
        torch.div(exponents, total, out=grad).sub_(smoothing / classes)
        if descends:
            grad.neg_()
        grad.masked_fill_(unusable, 0.0)
    else:
        # dividing by inf zeroes a row in the pass that is needed anyway
        divisor = (-total if descends else total).masked_fill(unusable, math.inf)
        torch.div(exponents, divisor, out=grad)
    if descends:
        at_own.neg_()
    # NaN, of a NaN or an infinite logit, is the only value that is not finite
    at_own.masked_fill_(unusable, 0.0).nan_to_num_(0.0)
    grad.nan_to_num_(0.0).scatter_(1, column, at_own)
    return loss


def _margin(
    rows: _Rows, kappa: float, grad: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss, gap z_up - z_down)."""
    own = rows.own
    if grad is None:
        column = own[:, None]
        rival_z = rows.z.scatter(1, column, -math.inf).amax(1)  # a sort costs ten times that
        own_z = rows.z.gather(1, column)[:, 0]
        gap = own_z - rival_z if rows.target is not None else rival_z - own_z
        return gap.clamp(max=kappa), gap
    values, columns = _ranked(rows, 2)
    leads = rows.first == own
    rival, rival_z = torch.where(leads, columns[1], columns[0]), torch.where(leads, *values[::-1])
    gap = _at(rows.z, own) - rival_z if rows.target is not None else rival_z - _at(rows.z, own)
    if grad is not None:
        up, down = (rival, own) if rows.target is None else (own, rival)
        slope = (gap <= kappa).logical_and_(~rows.unusable).to(grad.dtype)
        _fill_one_hot(grad, (up, slope), (down, -slope))
    return gap.clamp(max=kappa), gap


def _dlr(rows: _Rows, grad: torch.Tensor | None) -> torch.Tensor:
    z, label, target = rows.z, rows.label, rows.target
    values, columns = _ranked(rows, 3 if target is None else 4)
    if target is None:
        leads = columns[0] == label
        up, up_z = torch.where(leads, columns[1], columns[0]), torch.where(leads, *values[1::-1])
        low = values[2]
    else:
        up, up_z = target, _at(z, target)
        low = 0.5 * (values[2] + values[3])
    gap = up_z - _at(z, label)
    width = values[0] - low + _DLR_GUARD
    loss = gap / width
    if grad is not None:
        slope, bend = (1.0 / width).masked_fill_(rows.unusable, 0.0), loss / width
        bend.masked_fill_(rows.unusable, 0.0)
        low_bend = bend if target is None else 0.5 * bend
        terms = ((column, low_bend) for column in columns[2:])
        _fill_one_hot(grad, (up, slope), (label, -slope), (columns[0], -bend), *terms)
        grad.nan_to_num_(0.0, 0.0, 0.0)
    return loss


def _ratio(rows: _Rows, tolerance: float, grad: torch.Tensor | None) -> torch.Tensor:
    values, columns = _ranked(rows, 3 if rows.target is None else 4)
    leads = columns[0] == rows.own
    rival, rival_z = torch.where(leads, columns[1], columns[0]), torch.where(leads, *values[1::-1])
    own, own_z = rows.own, _at(rows.z, rows.own)
    up, down = (rival, own) if rows.target is None else (own, rival)
    gap = rival_z - own_z if rows.target is None else own_z - rival_z
    low = values[2] if rows.target is None else 0.5 * (values[2] + values[3])
    width = values[0] - low + _RATIO_GUARD
    loss = (gap - tolerance) / width
    if grad is not None:
        slope, bend = (1.0 / width).masked_fill_(rows.unusable, 0.0), loss / width
        bend.masked_fill_(rows.unusable, 0.0)
        low_bend = bend if rows.target is None else 0.5 * bend
        terms = ((column, low_bend) for column in columns[2:])
        _fill_one_hot(grad, (up, slope), (down, -slope), (columns[0], -bend), *terms)
        grad.nan_to_num_(0.0, 0.0, 0.0)
    return loss


def _difference(rows: _Rows, grad: torch.Tensor | None) -> torch.Tensor:
    assert rows.target is not None, "checked by the wrappers"
    if grad is not None:
        one = (~rows.unusable).to(grad.dtype)
        _fill_one_hot(grad, (rows.target, one), (rows.label, -one))
    return _at(rows.z, rows.target) - _at(rows.z, rows.label)


def _kl(rows: _Rows, reference: torch.Tensor, grad: torch.Tensor | None) -> torch.Tensor:
    q = reference.to(rows.z.dtype)
    log_probability = rows.z - rows.top[:, None]
    exponents = log_probability.exp()
    total = reduction.tree_sum(exponents).contiguous()
    log_probability.sub_(total.log()[:, None])
    terms = q.log().sub_(log_probability).mul_(q).masked_fill_(q == 0.0, 0.0)
    if grad is not None:
        torch.div(exponents, total[:, None], out=grad).sub_(q).nan_to_num_(0.0, 0.0, 0.0)
        grad.masked_fill_(rows.unusable[:, None], 0.0)
    return reduction.tree_sum(terms)


def _ascended(
    rows: _Rows,
    reference: torch.Tensor | None,
    kind: str,
    parameter: float,
    grad: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(loss, the margin's gap); fills `grad`, zero in unusable rows and where it is not finite."""
    if kind == "cross_entropy":
        return _cross_entropy(rows, parameter, grad), None
    if kind == "margin":
        return _margin(rows, parameter, grad)
    if kind == "dlr":
        return _dlr(rows, grad), None
    if kind == "ratio":
        return _ratio(rows, parameter, grad), None
    if kind == "difference":
        return _difference(rows, grad), None
    assert kind == "kl" and reference is not None, "checked by the wrappers"
    return _kl(rows, reference, grad), None


def loss_head_in_place(
    logits: torch.Tensor,
    labels: torch.Tensor,
    targets: torch.Tensor | None,
    reference: torch.Tensor | None,
    loss: torch.Tensor,
    grad: torch.Tensor | None,
    prediction: torch.Tensor,
    correct: torch.Tensor,
    slots: torch.Tensor | None,
    best_loss: torch.Tensor | None,
    kind: str,
    parameter: float,
    steps: int,
    first_step: int,
    stop_early: bool,
    best_from: int,
    any_error: bool,
) -> None:
    """The arguments of the op `fastadv::loss_head_`, by position."""
    z = logits.to(layout.compute_dtype(logits)).contiguous()
    last = z.shape[1] - 1
    top, first = z.max(1)
    has_nan = top != top
    label = labels.clamp(0, last)
    invalid = label != labels
    target = None
    if targets is not None:
        target = targets.clamp(0, last)
        invalid |= target != targets
    rows = _Rows(z, top, first, label, target, invalid | has_nan)
    prediction.copy_(first)
    torch.eq(first, labels, out=correct)
    value, gap = loss, None
    if kind != "none":
        filled = torch.empty_like(z) if grad is not None and grad.dtype != z.dtype else grad
        value, gap = _ascended(rows, reference, kind, parameter, filled)
        value.masked_fill_(invalid, 0.0).masked_fill_(has_nan, math.nan)
        if grad is not None and filled is not None and filled is not grad:
            limit = torch.finfo(grad.dtype).max  # DLR's 1 / 1e-12 on ties would be inf in fp16
            grad.copy_(filled.clamp_(-limit, limit))
    if slots is None:
        if kind != "none":
            loss.copy_(value)
    else:
        fooled = first != label if target is None or any_error else first == target
        fooled.logical_and_(~rows.unusable)
        if gap is not None and parameter > 0.0:
            fooled.logical_and_(gap >= parameter)
        rules = _Rules(steps, first_step, stop_early, best_from)
        active = _advance_slots(slots, best_loss, value, fooled, has_nan, invalid, rules)
        if kind != "none":
            torch.where(active, value.to(loss.dtype), loss, out=loss)


def _advance_slots(
    slots: torch.Tensor,
    best_loss: torch.Tensor | None,
    loss: torch.Tensor,
    fooled: torch.Tensor,
    has_nan: torch.Tensor,
    invalid: torch.Tensor,
    rules: _Rules,
) -> torch.Tensor:
    """Evaluate the iterates: successes, faults, best losses, and which slots step again.

    Returns which slots were active before: only they are written.
    """
    columns = slots.unbind(1)
    step, success_step = columns[slot_columns.STEP], columns[slot_columns.SUCCESS_STEP]
    active, fault = columns[slot_columns.ACTIVE], columns[slot_columns.FAULT]
    was_active = active != 0
    counted = was_active
    if rules.first_step > 0:
        counted = was_active & (step >= rules.first_step)
    new = fooled.logical_and_(counted).logical_and_(success_step < 0)
    torch.where(new, step, success_step, out=success_step)
    faults = has_nan.int().mul_(slot_columns.FAULT_NAN_LOGITS)
    faults.add_(invalid, alpha=slot_columns.FAULT_BAD_LABEL)
    fault.bitwise_or_(faults.mul_(was_active))
    if best_loss is not None:
        higher = was_active & (loss > best_loss)
        if rules.best_from > 0:
            higher.logical_and_(step >= rules.best_from)
        torch.where(higher, loss.to(best_loss.dtype), best_loss, out=best_loss)
        columns[slot_columns.IMPROVED].copy_(higher)
    goes_on = was_active & (step < rules.steps)
    if rules.stop_early:
        goes_on.logical_and_(success_step < 0)
    step.add_(goes_on)
    active.copy_(goes_on)
    return was_active
