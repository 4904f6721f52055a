"""The losses of ranked logits as compiled loops: margin, DLR, difference; and no loss at all."""

import math

from fastadv.ops.heads.loops_rows import fill, head
from fastadv.ops.loops import inner

_DLR_GUARD = 1e-12  # as in the reference
_RATIO_GUARD = 1e-8


@inner
def _largest_but(z, at, classes, column):
    """The first column of the largest logit outside of `column`."""
    rival = 1 if column == 0 else 0
    for j in range(rival + 1, classes):
        if j != column and z[at + j] > z[at + rival]:
            rival = j
    return rival


@inner
def _margin_of_row(
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
    writes,
    reference,
    reference_at,
    parameter,
):
    real = type(top)
    kappa, zero, one = real(parameter), real(0.0), real(1.0)
    rival = first if first != own else _largest_but(z, at, classes, own)
    up, down = (own, rival) if has_target else (rival, own)
    gap = z[at + up] - z[at + down]
    if writes:
        fill(grad, to, classes, zero)
        if gap <= kappa:
            grad[to + up] = one
            grad[to + down] = -one
    return kappa if gap > kappa else gap, parameter <= 0.0 or gap >= kappa


@inner
def _four_largest(z, at, classes):
    """Their columns, equal logits in ascending order; -1 where there are no four."""
    a = b = c = d = -1
    for j in range(classes):
        value = z[at + j]
        if d < 0 or value > z[at + d]:
            if c >= 0 and not value > z[at + c]:
                d = j
            else:
                d = c
                if b >= 0 and not value > z[at + b]:
                    c = j
                else:
                    c = b
                    if a >= 0 and not value > z[at + a]:
                        b = j
                    else:
                        b, a = a, j
    return a, b, c, d


@inner
def _finite(value):
    """Zero if it is none."""
    return value if abs(value) < math.inf else type(value)(0.0)


@inner
def _dlr_of_row(
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
    writes,
    reference,
    reference_at,
    parameter,
):
    real = type(top)
    half, one = real(0.5), real(1.0)
    a, b, c, d = _four_largest(z, at, classes)
    if has_target:
        up, low = own, half * (z[at + c] + z[at + d])
    else:
        up, low = b if a == label else a, z[at + c]
    gap = z[at + up] - z[at + label]
    width = z[at + a] - low + real(_DLR_GUARD)
    loss = gap / width
    if writes:
        slope, bend = one / width, loss / width
        fill(grad, to, classes, real(0.0))
        grad[to + up] += slope
        grad[to + label] -= slope
        grad[to + a] -= bend
        if has_target:
            grad[to + c] += half * bend
            grad[to + d] += half * bend
        else:
            grad[to + c] += bend
        for column in (up, label, a, c, max(d, 0)):
            grad[to + column] = _finite(grad[to + column])
    return loss, True


@inner
def _ratio_of_row(
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
    writes,
    reference,
    reference_at,
    parameter,
):
    real = type(top)
    half, one = real(0.5), real(1.0)
    a, b, c, d = _four_largest(z, at, classes)
    rival = b if a == own else a
    up, down = (own, rival) if has_target else (rival, own)
    low = half * (z[at + c] + z[at + d]) if has_target else z[at + c]
    width = z[at + a] - low + real(_RATIO_GUARD)
    loss = (z[at + up] - z[at + down] - real(parameter)) / width
    if writes:
        slope, bend = one / width, loss / width
        fill(grad, to, classes, real(0.0))
        grad[to + up] += slope
        grad[to + down] -= slope
        grad[to + a] -= bend
        if has_target:
            grad[to + c] += half * bend
            grad[to + d] += half * bend
        else:
            grad[to + c] += bend
        for column in (up, down, a, c, max(d, 0)):
            grad[to + column] = _finite(grad[to + column])
    return loss, True


@inner
def _difference_of_row(
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
    writes,
    reference,
    reference_at,
    parameter,
):
    real = type(top)
    if writes:
        fill(grad, to, classes, real(0.0))
        grad[to + own] += real(1.0)
        grad[to + label] -= real(1.0)
    return z[at + own] - z[at + label], True


@inner
def _given_of_row(
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
    writes,
    reference,
    reference_at,
    parameter,
):
    return reference[reference_at], True


margin = head("margin", _margin_of_row)
dlr = head("dlr", _dlr_of_row)
ratio = head("ratio", _ratio_of_row)
difference = head("difference", _difference_of_row)
none = head("none", _given_of_row, writes_loss=False)  # the reference is the loss
