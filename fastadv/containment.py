"""Whether adversarial examples lie where their threat model lets them be."""

import math
from dataclasses import replace

import torch

from fastadv.elements import common_bounds, contains_elements, has_elements
from fastadv.ops import doubles
from fastadv.region import Region
from fastadv.threat_model import ThreatModel

# one rounding of x +- eps (contract C3): half an ulp of a value in [0.5, 1)
_UNIT_ROUNDOFF = {
    torch.float64: 2.0**-53,
    torch.float32: 2.0**-24,
    torch.float16: 2.0**-11,
    torch.bfloat16: 2.0**-8,
}


def contains(
    threat: ThreatModel,
    x_adv: torch.Tensor,
    x: torch.Tensor,
    eps: float | torch.Tensor | None = None,
    region: Region | None = None,
) -> torch.Tensor:
    """(B,) bool: x_adv is in bounds and, in float64, distance <= eps * (1 + 1e-6) + r.

    r is one rounding of x +- eps: u (L-infinity), u * sqrt(d) (L2), u * d (L1), times
    max(|lo|, |hi|). In L0 nothing is rounded: distance <= eps. With radii or bounds of elements r
    adds up theirs, and in L-infinity each element is looked at. region: where elements may go, if
    not that of `threat`.
    """
    radius = threat.eps if eps is None else eps
    if region is not None and region.mask is not None:
        moved = (x_adv != x) & ~region.mask
        unmasked = replace(region, mask=None) if region.has_elements else None
        inside = contains(threat, x_adv, x, eps, unmasked)
        return inside & ~moved.reshape(len(x), math.prod(x.shape[1:])).any(1)
    if region is not None or has_elements(threat):
        own = None if region is None else region.eps
        return contains_elements(
            x_adv,
            x,
            norm=threat.norm,
            eps=radius if own is None else own,
            bounds=threat.bounds if region is None else region.bounds,
            roundoff=_UNIT_ROUNDOFF[x.dtype],
        )
    size = x[0].numel() if len(x) else 0
    bounds = common_bounds(threat)
    lo, hi = (-math.inf, math.inf) if bounds is None else bounds
    outside = (x_adv < lo) | (x_adv > hi) | x_adv.isnan()
    in_bounds = ~outside.reshape(len(x), size).any(1)
    largest: float | torch.Tensor = max(abs(lo), abs(hi))
    if math.isinf(largest):  # no bound on the values but their own
        values = doubles.doubled(x).abs().reshape(len(x), size)
        largest = values.amax(1) if size else values.new_zeros(len(x))
    slack = _UNIT_ROUNDOFF[x.dtype] * threat.rounding(size) * largest
    if isinstance(radius, torch.Tensor):
        radius = doubles.doubled(radius, beside=x)
    limit = radius if threat.norm == "l0" else radius * (1 + 1e-6) + slack
    if doubles.has_float64(x):
        return in_bounds & (threat.distance(x_adv, x) <= limit)
    distance = threat.distance(doubles.doubled(x_adv), doubles.doubled(x))
    return in_bounds & doubles.returned(distance <= limit, x)
