"""Threat models: a norm, a radius and the pixel bounds, with all that depends on the norm."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol, cast

import torch

from fastadv.elements import (
    Bounds,
    check_elements_fit,
    check_sides,
    common_bounds,
    has_elements,
    has_radius,
    in_units,
    of_elements,
)
from fastadv.ops import doubles, layout, reduction
from fastadv.ops.steps import arguments as step_arguments
from fastadv.ops.steps import l1, l1_box, l1_projection, l2, linf
from fastadv.region import region_of
from fastadv.values import pasteable_value, same_settings, same_value

_ROUNDED = 1e-6  # L2(math.sqrt(d)), in float32 too, is the whole box
_STEPS: dict[str, Callable[..., torch.Tensor]] = {
    "linf": linf.linf_step_,
    "l2": l2.l2_step_,
    "l1": l1.l1_step_,
}


class ThreatModel(Protocol):
    """What an attack asks of a norm: `Linf`, `L2`, `L1` here, and `L0`, which counts.

    eps: float or (B,) tensor, in input units, or a tensor with a batch axis, (1, F) or (1, C, 1, 1)
    say, of radii of elements; inf is no limit. bounds: (lo, hi), floats or tensors of elements, or
    None. Tensors are (B, ...).
    """

    norm: ClassVar[str]
    eps: float | torch.Tensor
    bounds: Bounds

    def __post_init__(self) -> None:
        eps, bounds = self.eps, self.bounds
        name = type(self).__name__
        if isinstance(eps, bool) or not isinstance(eps, (int, float, torch.Tensor)):
            raise TypeError(f"{name} eps must be a float or a (B,) tensor; got {eps!r}")
        radius = torch.as_tensor(eps)
        if has_radius(self) and not bool((radius.isfinite() & (radius >= 0)).all()):
            raise ValueError(
                f"{name} eps must be a finite float or (B,) tensor >= 0, or math.inf for no limit; "
                f"got {eps}"
            )
        check_sides(name, bounds)

    def __repr__(self) -> str:
        given = [pasteable_value(self.eps)] if has_radius(self) else []
        for setting in fields(cast(Any, self))[1:]:
            value = getattr(self, setting.name)
            if not same_value(value, setting.default):
                given.append(f"{setting.name}={pasteable_value(value)}")
        return f"fastadv.{type(self).__name__}({', '.join(given)})"

    def __eq__(self, other: object) -> bool:
        return same_settings(self, other)

    def __hash__(self) -> int:
        sides = self.bounds or ()
        return hash((type(self), *(tuple(s.shape) if of_elements(s) else s for s in sides)))  # type: ignore[union-attr]

    def step_(
        self,
        x_adv: torch.Tensor,
        grad: torch.Tensor,
        x: torch.Tensor,
        *,
        step_size: float | torch.Tensor,
        eps: float | torch.Tensor,
        box: torch.Tensor | None = None,
        **more: Any,
    ) -> torch.Tensor:
        """One fused ascent step with projection and clamp, in place. box: that of a `Region`, where
        elements are not all alike."""
        bounds: Any = self.bounds  # alike for all elements
        if box is not None:
            more["box"], bounds = box, common_bounds(self)
        return _STEPS[self.norm](
            x_adv, grad, x, step_size=step_size, eps=eps, bounds=bounds, **more
        )

    def project(self, x_adv: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """x_adv projected onto the eps-ball around x and bounds (L2: ball, then box); into bounds
        alone where there is no radius."""
        ...

    def distance(self, x_adv: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """||x_adv - x|| of each sample, (B,), computed in float64; float32 on devices that have no
        float64."""
        ...

    def rounding(self, size: int) -> float:
        """How one rounding of each of `size` elements adds up in this norm."""
        ...


def check_fits(threat: ThreatModel, x: torch.Tensor) -> None:
    """Raises ValueError if the ball is wider than the box: eps was meant in other units. The whole
    box is taken, also where its diameter was rounded up; no radius fits every box."""
    if not has_radius(threat):
        return
    if threat.norm == "l0":
        threat.check_size(x)  # type: ignore[attr-defined]
        return
    if has_elements(threat):
        check_elements_fit(threat, x)
        return
    bounds = common_bounds(threat)
    if bounds is None or x.numel() == 0:
        return
    lo, hi = bounds
    size = x[0].numel()
    widest = (hi - lo) * {"linf": 1.0, "l2": math.sqrt(size), "l1": float(size)}[threat.norm]
    eps = threat.eps
    if isinstance(eps, torch.Tensor):
        eps = float(eps.max()) if eps.numel() else 0.0
    if eps > widest * (1 + _ROUNDED):
        raise ValueError(
            f"{threat!r}: eps={eps:g} is larger than the box, whose diameter is {widest:g} in this "
            f"norm for inputs in {threat.bounds}; give eps in input units (8/255, not 8)"
        )


def _difference(threat: ThreatModel, x_adv: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """(n, D), in units of eps where that is one for each element."""
    difference = doubles.doubled(x_adv) - doubles.doubled(x)
    if of_elements(threat.eps):
        difference = in_units(difference, cast(torch.Tensor, threat.eps), x)
    return difference.reshape(len(x), math.prod(x.shape[1:]))


def projected(threat: ThreatModel, x_adv: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """x_adv after a step of no length; in bounds, where that is all there is."""
    if not has_radius(threat):
        inside = x_adv.to(layout.compute_dtype(x_adv))
        for side, nearer in zip(threat.bounds or (), (torch.maximum, torch.minimum), strict=False):
            inside = nearer(inside, torch.as_tensor(side, dtype=inside.dtype, device=inside.device))
        return inside.to(x_adv.dtype, copy=True)
    moved = step_arguments.dense_copy(x_adv)
    region, eps = region_of(threat, x), threat.eps
    box = None if region is None else region.box(x, eps, like=moved)
    still = torch.zeros_like(moved)
    radius = 1.0 if of_elements(eps) else eps
    return threat.step_(moved, still, x, step_size=0.0, eps=radius, box=box)


def check_threat(threat: object) -> None:
    """Raises TypeError unless `threat` is a threat model: not a radius, not a class."""
    if isinstance(threat, type) or not hasattr(threat, "norm"):
        raise TypeError(
            f"threat must be fastadv.Linf, L2 or L1 with a radius, such as fastadv.Linf(8 / 255); "
            f"got {threat!r}"
        )


@dataclass(frozen=True, repr=False, eq=False)
class Linf(ThreatModel):
    """max|x_adv - x| <= eps, inside bounds.

    eps: radius in input units (8/255 for images in [0, 1]), float or (B,) tensor, or one for each
    element, a tensor with a batch axis, (1, F), (1, C, 1, 1) or (B, ...). bounds: (lo, hi), floats
    or tensors of elements, or None for no clamp. Without a radius, `fastadv.Linf()` or math.inf, it
    says how a distance is measured, for attacks that look for the nearest adversarial example.
    Raises ValueError for a negative radius or one wider than bounds.
    Example: `fastadv.Linf(8 / 255)`. Source: Madry et al. 2018, arXiv:1706.06083.
    """

    eps: float | torch.Tensor = math.inf
    bounds: Bounds = (0.0, 1.0)
    norm: ClassVar[str] = "linf"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fits(self, torch.empty(1, 1))

    def project(self, x_adv: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return projected(self, x_adv, x)

    def distance(self, x_adv: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        if x.numel() == 0:
            return x.new_zeros(len(x), dtype=doubles.widest(x))
        return doubles.returned(_difference(self, x_adv, x).abs().amax(1), x)

    def rounding(self, size: int) -> float:
        return 1.0


@dataclass(frozen=True, repr=False, eq=False)
class L2(ThreatModel):
    """||x_adv - x||_2 <= eps, inside bounds; arguments as in `Linf`.

    With an eps for each element it is the ball of the scaled input, ||(x_adv - x) / eps||_2 <= 1;
    distances and step sizes are in units of eps.

    Example: `fastadv.L2(0.5)`. Source: Madry et al. 2018, arXiv:1706.06083.
    """

    eps: float | torch.Tensor = math.inf
    bounds: Bounds = (0.0, 1.0)
    norm: ClassVar[str] = "l2"

    def project(self, x_adv: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return projected(self, x_adv, x)

    def distance(self, x_adv: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return doubles.returned(reduction.tree_sum(_difference(self, x_adv, x).square()).sqrt(), x)

    def rounding(self, size: int) -> float:
        return math.sqrt(size)


@dataclass(frozen=True, repr=False, eq=False)
class L1(ThreatModel):
    """||x_adv - x||_1 <= eps, inside bounds; arguments as in `Linf`.

    The projection is the exact one onto ball and box together. With an eps for each element it is
    the ball of the scaled input, ||(x_adv - x) / eps||_1 <= 1; distances and step sizes are in
    units of eps. Where elements have radii or bounds of their own, the projection is that onto the
    ball and then into bounds.

    Example: `fastadv.L1(12.0)`. Source: Croce and Hein 2021, arXiv:2103.01208.
    """

    eps: float | torch.Tensor = math.inf
    bounds: Bounds = (0.0, 1.0)
    norm: ClassVar[str] = "l1"

    def step_(
        self,
        x_adv: torch.Tensor,
        grad: torch.Tensor,
        x: torch.Tensor,
        *,
        step_size: float | torch.Tensor,
        eps: float | torch.Tensor,
        box: torch.Tensor | None = None,
        **more: Any,
    ) -> torch.Tensor:
        if box is None:
            return super().step_(x_adv, grad, x, step_size=step_size, eps=eps, **more)
        return l1_box.l1_step_in_box_(
            x_adv,
            grad,
            x,
            box=box,
            in_units=of_elements(self.eps),
            bounds=common_bounds(self),
            clamps=any(map(of_elements, self.bounds or ())),
            step_size=step_size,
            eps=eps,
            **more,
        )

    def project(self, x_adv: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        if has_elements(self) or not has_radius(self):
            return projected(self, x_adv, x)
        return l1_projection.project_l1(x_adv, x, eps=self.eps, bounds=common_bounds(self))

    def distance(self, x_adv: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return doubles.returned(reduction.tree_sum(_difference(self, x_adv, x).abs()), x)

    def rounding(self, size: int) -> float:
        return float(size)
