"""Random starts in the ball of a threat model."""

from dataclasses import replace
from typing import Any, Literal, cast

import torch

from fastadv.elements import check_radius, common_bounds, of_elements
from fastadv.ops.noise import start
from fastadv.region import Region, region_of
from fastadv.threat_model import ThreatModel

StartKind = Literal["uniform", "gaussian", "sphere"]


def start_point(
    threat: ThreatModel,
    x: torch.Tensor,
    *,
    seed: int,
    sample_ids: torch.Tensor | None = None,
    draw: int | torch.Tensor = 0,
    kind: StartKind = "uniform",
    clamp_start: bool = True,
    eps: float | torch.Tensor | None = None,
    region: Region | None = None,
) -> torch.Tensor:
    """A random start in the eps-ball around x: kind "uniform", "gaussian" or (L2) "sphere".

    In L0 it is uniform in bounds, projected: of its entries those farthest from x stay.
    Philox-keyed by (seed, sample_id, draw): the same bits in any batch, where a sample keeps its
    id; sample_ids: (B,) integers, 0..B-1 if None. clamp_start=False leaves the point outside bounds
    where the draw lands there. region: where elements may go, if not that of `threat`. Raises
    ValueError for a threat model without a radius, and in L0 for one without bounds.
    Example: `fastadv.start_point(fastadv.L2(0.5), x, seed=0)`.
    """
    region = region or region_of(threat, x)
    if region is not None and (threat.norm, kind) == ("l1", "gaussian"):
        raise ValueError(
            "a 'gaussian' start in L1 takes no mask= and no radii or bounds of elements: use "
            "'uniform'"
        )
    if eps is None:
        check_radius(threat, "a random start")
        eps = threat.eps
    if threat.norm == "l0":
        return _sparse_start(threat, x, eps, kind, seed=seed, sample_ids=sample_ids, draw=draw)
    return start.random_start(
        x,
        eps=1.0 if of_elements(eps) else eps,
        seed=seed,
        sample_ids=sample_ids,
        draw=draw,
        kind=cast(start.Kind, f"{threat.norm}_{kind}"),
        bounds=common_bounds(threat) if clamp_start else None,
        box=None if region is None else region.start_box(x, clamps=clamp_start),
    )


def _sparse_start(
    threat: ThreatModel, x: torch.Tensor, eps: float | torch.Tensor, kind: StartKind, **keys: Any
) -> torch.Tensor:
    bounds = common_bounds(threat)
    if bounds is None or kind != "uniform":
        raise ValueError(
            f"a random start in L0 is uniform in bounds; got kind={kind!r} and {threat!r}"
        )
    lo, hi = bounds
    middle = torch.full_like(x, (lo + hi) / 2)
    anywhere = start.random_start(
        middle, eps=(hi - lo) / 2, kind="linf_uniform", bounds=bounds, **keys
    )
    return replace(cast(Any, threat), eps=eps).project(anywhere, x)
