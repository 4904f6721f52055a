"""The cross-entropy as a compiled loop."""

import math

from fastadv.ops.heads.loops_rows import fill, head
from fastadv.ops.loop_math import exp, total_of
from fastadv.ops.loops import inner


@inner
def _loss_of_row(z, at, classes, top, own, descends, smoothing, exponents, to):
    """(loss, the sum of the exponentials, which are left in `exponents`)."""
    real = type(top)
    for j in range(classes):
        exponents[to + j] = exp(z[at + j] - top)
    total = total_of(exponents, to, classes)
    log_total = real(math.log(total))
    loss = (top - z[at + own]) + log_total
    if smoothing > 0.0:
        spread = 0.0
        for j in range(classes):
            spread += top - z[at + j]
        loss = real(1.0 - smoothing) * loss
        loss += real(smoothing) * (log_total + real(spread) / real(classes))
    return -loss if descends else loss, total


@inner
def _to_gradient(grad, at, classes, own, total, descends, smoothing):
    """The exponentials in `grad` become the gradient."""
    real = type(total)
    at_own = grad[at + own] / total - real(1.0 - smoothing + smoothing / classes)
    if smoothing > 0.0:
        each, sign = real(smoothing / classes), real(-1.0 if descends else 1.0)
        for j in range(at, at + classes):
            grad[j] = (grad[j] / total - each) * sign
    else:
        divisor = -total if descends else total
        for j in range(at, at + classes):
            grad[j] = grad[j] / divisor
    grad[at + own] = -at_own if descends else at_own


@inner
def _cross_entropy_of_row(
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
    smoothing,
):
    value = type(top)(math.nan)
    if abs(top) < math.inf:
        value, total = _loss_of_row(z, at, classes, top, own, has_target, smoothing, grad, to)
        if writes:
            _to_gradient(grad, to, classes, own, total, has_target, smoothing)
    elif writes:  # exp(inf - inf) is NaN, whose gradient counts as zero
        fill(grad, to, classes, type(top)(0.0))
    return value, True


cross_entropy = head("cross_entropy", _cross_entropy_of_row)
