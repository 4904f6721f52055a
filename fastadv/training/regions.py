"""Where elements of training samples may go: masks, and the radii and bounds of a step's threat."""

from dataclasses import replace
from typing import Any

import torch

from fastadv.elements import Value, has_elements, of_elements, radius_of
from fastadv.ops import layout
from fastadv.region import Region, checked_mask, region_of
from fastadv.threat_model import ThreatModel

_MOST = 8  # of threats, devices, dtypes and shapes, oldest first


def check_radii(threat: ThreatModel) -> None:
    """Raises ValueError for radii or bounds of samples; those of elements hold for all of them."""
    eps = threat.eps
    if isinstance(eps, torch.Tensor) and not of_elements(eps):
        raise ValueError(
            f"threat must have one eps for all samples, a float; got {threat!r}. Reading a "
            "tensor would synchronise at every batch. Radii of elements have a batch axis of 1: "
            "eps[None]"
        )
    if not has_elements(threat):
        return
    if threat.norm == "l1":
        raise ValueError(
            f"threat must have one eps and one pair of bounds in L1; got {threat!r}: use "
            "fastadv.Linf or fastadv.L2"
        )
    for value in (eps, *(threat.bounds or ())):
        if isinstance(value, torch.Tensor) and of_elements(value) and len(value) != 1:
            raise ValueError(
                "threat must have one eps for all samples, and so bounds: those of elements have a "
                f"batch axis of 1 in training, {(1, *value.shape[1:])}; got {tuple(value.shape)}"
            )


def check_alike(step: Any) -> None:
    """Raises ValueError for radii or bounds of elements, where a method takes none."""
    if has_elements(step.threat):
        raise ValueError(
            f"{type(step).__name__} takes one eps and one pair of bounds for all elements; got "
            f"{step.threat!r}: use FastAT, PGDAT or FreeAT"
        )


def quarter(threat: ThreatModel) -> float:
    """A quarter of eps, by which the rescue of a `Sentinel` steps; raises ValueError where that is
    no one length."""
    radius = radius_of(threat)
    if of_elements(radius):
        raise ValueError(
            "a rescue steps by a quarter of one eps, and L-infinity radii of elements have none: "
            f"use on_collapse='warn' or 'stop'; got {threat!r}"
        )
    return float(radius) / 4


def warmed(threat: ThreatModel, factor: float) -> Value:
    """The radius after warm-up, or the radii of elements."""
    eps = threat.eps
    if isinstance(eps, torch.Tensor) and of_elements(eps):
        return eps if factor == 1.0 else eps * factor
    return float(eps) * factor


def in_lengths(threat: ThreatModel, factor: float) -> float:
    """The radius after warm-up as the steps take it: 1.0 where a region has radii of elements, in
    units of which everything else is counted."""
    return 1.0 if of_elements(threat.eps) else float(threat.eps) * factor


def step_length(
    threat: ThreatModel, step_size: float | None, *, default: float, factor: float
) -> float:
    """step_size, or `default` in units of eps, after warm-up. Of radii of elements it is in units
    of those, which have grown themselves, but in L-infinity, where it is given, in input units."""
    if not of_elements(threat.eps):
        step = default * float(threat.eps) if step_size is None else step_size
        return step * factor
    if step_size is None:
        return default
    return float(step_size) * (factor if threat.norm == "linf" else 1.0)


def grown(region: Region | None, factor: float) -> Region | None:
    """The region with its radii, and with them the units of step sizes, after warm-up."""
    if region is None or region.eps is None or factor == 1.0:
        return region
    step = region.step_size
    return replace(
        region, eps=region.eps * factor, step_size=None if step is None else step * factor
    )


def inside(x: torch.Tensor, region: Region | None, *, rounds: bool) -> torch.Tensor:
    """x, or where samples left bounds of elements by rounding x clamped."""
    if not rounds or region is None or max(region.lower.numel(), region.upper.numel()) == 1:
        return x
    return x.clamp(region.lower.to(x.dtype), region.upper.to(x.dtype))


class Regions:
    """The regions of a step's batches. Radii and bounds of elements are read, checked against the
    shape of samples and brought to their device once, not at every batch.

    evictions: how often tensors were dropped that a recorded step may still read.
    """

    def __init__(self) -> None:
        self.evictions: int = 0
        self._kept: dict[tuple, tuple[ThreatModel, Region]] = {}

    def of(
        self, threat: ThreatModel, x: torch.Tensor, mask: object, step_size: float | None
    ) -> Region | None:
        """Where elements of x may go, before warm-up, None where all are alike. step_size: as
        it is given, in L-infinity in input units; None for one in units of the radii. Raises for
        what is no mask, or in L1, and where elements do not broadcast to x."""
        if mask is None and not has_elements(threat):
            return None
        if threat.norm == "l1":
            raise ValueError(f"{threat!r} takes no mask=: use fastadv.Linf or fastadv.L2")
        checked = checked_mask(mask, x)
        if not has_elements(threat):
            return region_of(threat, x, mask=checked)
        region = self._of_elements(threat, x)
        has_units = step_size is None and threat.norm == "linf"
        return replace(region, mask=checked, step_size=region.eps if has_units else None)

    def _of_elements(self, threat: ThreatModel, x: torch.Tensor) -> Region:
        key = (id(threat), x.shape[1:], x.device, layout.compute_dtype(x))
        kept = self._kept.get(key)
        if kept is not None and kept[0] is threat:
            return kept[1]
        region = region_of(threat, x)
        assert region is not None, "of a threat that has elements"
        self._kept[key] = threat, region
        if len(self._kept) > _MOST:
            del self._kept[next(iter(self._kept))]
            self.evictions += 1
        return region
