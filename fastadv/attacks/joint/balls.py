"""Smaller balls around x: where a search in them begins."""

import math

import torch

from fastadv.elements import common_bounds
from fastadv.ops import layout
from fastadv.threat_model import ThreatModel


def drawn_in(
    x_adv: torch.Tensor, x: torch.Tensor, radius: torch.Tensor, threat: ThreatModel
) -> torch.Tensor:
    """x_adv moved towards x into the ball of (n,) `radius`, in bounds: clamped to it in
    L-infinity, along the straight line in L2 and L1, the largest entries kept in L0."""
    dtype = layout.compute_dtype(x)
    clean, u = x.to(dtype), x_adv.to(dtype) - x.to(dtype)
    rows = radius.to(dtype).view(-1, *[1] * (x.ndim - 1))
    if threat.norm == "l0":
        order = u.abs().flatten(1).argsort(dim=1, descending=True, stable=True)
        places = torch.arange(order.shape[1], device=x.device).expand_as(order)
        rank = torch.empty_like(order).scatter_(1, order, places).view_as(x)
        return torch.where(rank < rows, x_adv, x)
    if threat.norm == "linf":
        u = torch.minimum(torch.maximum(u, -rows), rows)
    else:
        length = threat.distance(x_adv, x).to(dtype).view_as(rows)
        u = u * torch.where(length > rows, rows / length, 1.0)
    moved = clean + u
    bounds = common_bounds(threat)
    return (moved if bounds is None else moved.clamp(*bounds)).to(x.dtype)


def widest(x: torch.Tensor, threat: ThreatModel) -> float:
    """A radius within which nearly everything is adversarial: half of the box's."""
    bounds = common_bounds(threat)
    width = 1.0 if bounds is None else bounds[1] - bounds[0]
    size = math.prod(x.shape[1:])
    whole = {"linf": 1.0, "l2": math.sqrt(size), "l1": float(size), "l0": float(size)}[threat.norm]
    return max(1.0, size // 2) if threat.norm == "l0" else whole * width / 2
