"""The threat model that counts: how many entries, or pixels, may change."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch

from fastadv.elements import Bounds, common_bounds, has_elements, has_radius
from fastadv.ops import doubles
from fastadv.ops.steps import l0
from fastadv.threat_model import ThreatModel, projected

Unit = Literal["entry", "pixel"]


@dataclass(frozen=True, repr=False, eq=False)
class L0(ThreatModel):
    """At most eps entries of x_adv differ from those of x, inside bounds.

    eps: a whole number of at least 1, or a (B,) tensor of such; without one, `fastadv.L0()`, as in
    `Linf`. unit: "entry", or "pixel", of which one changes if any of its channels does: x is then
    (B, C, ...). bounds: (lo, hi), floats, or None. What has not changed is x bit for bit, so
    `contains` allows no rounding. The projection is the exact one onto ball and box together.
    Raises ValueError for what is no whole number, and for tensors of elements.

    Example: `fastadv.pgd(fastadv.L0(20, unit="pixel"), steps=100)(model, x, y)`.
    Source: Croce and Hein 2019, arXiv:1909.05040.
    """

    eps: float | torch.Tensor = math.inf
    unit: Unit = "entry"
    bounds: Bounds = (0.0, 1.0)
    norm: ClassVar[str] = "l0"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.unit not in get_args(Unit):
            raise ValueError(f"L0 unit must be one of {get_args(Unit)}; got {self.unit!r}")
        if has_elements(self):
            raise ValueError(
                "L0 counts elements, which have no radii or bounds of their own: give eps as a "
                f"whole number or a (B,) tensor, bounds as floats; got {self!r}"
            )
        count = torch.as_tensor(self.eps)
        if has_radius(self) and not bool(((count >= 1) & (count == count.floor())).all()):
            raise ValueError(
                f"L0 eps must be a whole number of {self._counted} of at least 1, or a (B,) tensor "
                f"of such; got {self.eps}"
            )

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
        assert box is None, "elements are all alike"
        reach: dict[str, Any] = dict(step_size=step_size, eps=eps, bounds=common_bounds(self))
        return l0.l0_step_(x_adv, grad, x, pixels=self.unit == "pixel", **reach, **more)

    def project(self, x_adv: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        self.check_size(x)
        return projected(self, x_adv, x)

    def distance(self, x_adv: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        self._check_pixels(x)
        changed = x_adv != x
        if self.unit == "pixel":
            changed = changed.any(1)
        # a sum of ones and zeros is exact in any order
        return changed.reshape(len(x), changed[:1].numel()).sum(1).to(doubles.widest(x))

    def rounding(self, size: int) -> float:
        return 0.0

    def check_size(self, x: torch.Tensor) -> None:
        """Raises ValueError for samples that have no pixels, or fewer entries than eps."""
        self._check_pixels(x)
        if not has_radius(self) or x.numel() == 0:
            return
        there_are = x[0].numel() // (x.shape[1] if self.unit == "pixel" else 1)
        most = torch.as_tensor(self.eps).max()
        if bool(most > there_are):
            raise ValueError(
                f"{self!r}: eps={float(most):g} is more than the {there_are:,} {self._counted} "
                "that a sample has"
            )

    def _check_pixels(self, x: torch.Tensor) -> None:
        if self.unit == "pixel" and x.ndim < 3:
            raise ValueError(
                f"{self!r} counts pixels of images, (B, C, ...); got x of {tuple(x.shape)}"
            )

    @property
    def _counted(self) -> str:
        return "pixels" if self.unit == "pixel" else "entries"
