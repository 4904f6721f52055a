"""Radii that may not be what was meant: zero, or in L2 one that is usual for L-infinity."""

import math

import torch

from fastadv import diagnostics
from fastadv.elements import common_bounds
from fastadv.threat_model import ThreatModel

_SMALL = 0.1  # of the range of the bounds
_ELEMENTS = 500  # of fewer, digits say, small balls are studied


def question(threat: ThreatModel, x: torch.Tensor) -> None:
    """Warn of one radius of 0 for all samples, (n, ...), and of a small one in L2."""
    eps = threat.eps
    if isinstance(eps, torch.Tensor) and eps.ndim == 0:
        eps = float(eps)
    if not isinstance(eps, torch.Tensor) and eps == 0:
        diagnostics.warn("zero_radius", len(x), len(x))
    question_small(threat, x)


def question_small(threat: ThreatModel, x: torch.Tensor) -> None:
    """Warn of an L2 radius below a tenth of the range of the bounds, for samples, (n, ...), of more
    than 500 elements; where each has its own, if all are so small."""
    if threat.norm != "l2" or len(x) == 0 or x[0].numel() <= _ELEMENTS:
        return
    bounds, eps = common_bounds(threat), torch.as_tensor(threat.eps)
    if bounds is None or eps.ndim > 1 or eps.numel() == 0:
        return
    width = bounds[1] - bounds[0]
    if math.isfinite(width) and 0 < float(eps.max()) < _SMALL * width:
        diagnostics.warn("small_radius", len(x), len(x))
