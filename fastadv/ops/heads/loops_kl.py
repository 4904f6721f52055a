"""The divergence from a reference as a compiled loop."""

import math

from fastadv.ops.heads.loops_rows import fill, head
from fastadv.ops.loop_math import exp, total_of
from fastadv.ops.loops import inner


@inner
def _kl_of_row(
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
    value, zero = real(math.nan), real(0.0)
    if abs(top) < math.inf:
        for j in range(classes):
            grad[to + j] = exp(z[at + j] - top)
        total = total_of(grad, to, classes)
        log_total, divergence = real(math.log(total)), 0.0
        for j in range(classes):
            q = reference[reference_at + j]
            if q != zero:
                divergence += q * (real(math.log(q)) - ((z[at + j] - top) - log_total))
            if writes:
                share = grad[to + j] / total - q
                grad[to + j] = share if abs(share) < math.inf else zero
        value = real(divergence)
    elif writes:
        fill(grad, to, classes, zero)
    return value, True


kl = head("kl", _kl_of_row)
