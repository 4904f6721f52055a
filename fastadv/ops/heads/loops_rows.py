"""What the compiled loss heads share: a loop over rows, their faults, and the state of slots."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fastadv.kernels import slots as columns
from fastadv.ops.loops import Address, Count, Double, Loop, Real, inner, pointer


@inner
def _top_of(z, at, classes):
    """(the largest logit, its first column), of the first NaN in a row with one."""
    top, first = z[at], 0
    if top == top:
        for j in range(1, classes):
            value = z[at + j]
            if not value <= top:
                top, first = value, j
                if value != value:
                    break
    return top, first


@inner
def _clamped(column, classes):
    return min(max(column, 0), classes - 1)


@inner
def fill(values, at, count, value):
    for j in range(at, at + count):
        values[j] = value


@inner
def _advanced(
    slots, at, fooled, loss, best, row, has_best, steps, first_step, stop_early, best_from
):
    """Evaluates the slot of an iterate, as the reference's `_advance_slots` does; whether it was
    active before."""
    step, active = slots[at + columns.STEP], slots[at + columns.ACTIVE] != 0
    counted = active and (first_step <= 0 or step >= first_step)
    if fooled and counted and slots[at + columns.SUCCESS_STEP] < 0:
        slots[at + columns.SUCCESS_STEP] = step
    if has_best:
        higher = active and loss > best[row] and (best_from <= 0 or step >= best_from)
        if higher:
            best[row] = loss
        slots[at + columns.IMPROVED] = 1 if higher else 0
    goes_on = active and step < steps
    if stop_early and slots[at + columns.SUCCESS_STEP] >= 0:
        goes_on = False
    if goes_on:
        slots[at + columns.STEP] = step + 1
    slots[at + columns.ACTIVE] = 1 if goes_on else 0
    return active


def head(kind: str, loss_of_row: Callable[..., Any], *, writes_loss: bool = True) -> Loop:
    """The loop of a loss. loss_of_row: an `inner` function that takes

    (z, at, classes, top, first, own, label, has_target, grad, to, writes, reference,
    reference_at, parameter)

    with the row's logits at z[at], and gives (loss, whether its margin is that of a success). It
    fills the `classes` places from grad[to] with the gradient if it `writes`, else with anything.
    """

    def run(
        logits_at: Address,
        logits_stride: Count,
        labels_at: Address,
        targets_at: Address,
        reference_at: Address,
        reference_stride: Count,
        loss_at: Address,
        grad_at: Address,
        grad_stride: Count,
        scratch_at: Address,
        prediction_at: Address,
        correct_at: Address,
        slots_at: Address,
        best_at: Address,
        rows: Count,
        classes: Count,
        zero: Real,
        parameter: Double,
        steps: Count,
        first_step: Count,
        stop_early: Count,
        best_from: Count,
        any_error: Count,
    ) -> None:
        z, loss, best = pointer(logits_at, zero), pointer(loss_at, zero), pointer(best_at, zero)
        reference, grad = pointer(reference_at, zero), pointer(scratch_at, zero)
        labels, targets = pointer(labels_at, np.int64), pointer(targets_at, np.int64)
        prediction, correct = pointer(prediction_at, np.int64), pointer(correct_at, np.uint8)
        slots, has_target, to = pointer(slots_at, np.int32), targets_at != 0, 0
        if grad_at != 0:
            grad = pointer(grad_at, zero)
        for row in range(rows):
            at = row * logits_stride
            top, first = _top_of(z, at, classes)
            label = _clamped(labels[row], classes)
            own, is_valid, has_nan = label, label == labels[row], top != top
            if has_target:
                own = _clamped(targets[row], classes)
                is_valid = is_valid and own == targets[row]
            prediction[row] = first
            correct[row] = first == labels[row]
            usable = is_valid and not has_nan
            if grad_at != 0:
                to = row * grad_stride
            value, is_far = loss_of_row(
                z,
                at,
                classes,
                top,
                first,
                own,
                label,
                has_target,
                grad,
                to,
                usable and grad_at != 0,
                reference,
                row * reference_stride,
                parameter,
            )
            if grad_at != 0 and not usable:
                fill(grad, to, classes, zero)
            if writes_loss and not is_valid:
                value = zero
            if writes_loss and has_nan:
                value = type(zero)(math.nan)
            if slots_at != 0:
                state = row * columns.WIDTH
                if slots[state + columns.ACTIVE] != 0:
                    if has_nan:
                        slots[state + columns.FAULT] |= columns.FAULT_NAN_LOGITS
                    if not is_valid:
                        slots[state + columns.FAULT] |= columns.FAULT_BAD_LABEL
                fooled = first == own if has_target and any_error == 0 else first != label
                fooled = fooled and usable and is_far
                if not _advanced(
                    slots,
                    state,
                    fooled,
                    value,
                    best,
                    row,
                    best_at != 0,
                    steps,
                    first_step,
                    stop_early,
                    best_from,
                ):
                    continue
            if writes_loss:
                loss[row] = value

    return Loop(run, f"heads.{kind}")
