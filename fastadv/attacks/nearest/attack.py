"""Attacks that look for the nearest adversarial point: settings, checks, and their constructors."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from fastadv import losses
from fastadv.attacks.attack import constructor, in_norms
from fastadv.attacks.nearest.radius_slots import Moves, RadiusSlots
from fastadv.attacks.nearest.search import Keep, NearestAttack
from fastadv.engine.algorithm import SlotAlgorithm
from fastadv.oracle.gradient import Oracle
from fastadv.threat_model import ThreatModel

AtBounds = Literal["minded", "ignored"]


@dataclass(frozen=True, repr=False, eq=False)
class RadiusAttack(NearestAttack):
    """DDN or FMN; see `fastadv.ddn` and `fastadv.fmn` for the settings."""

    constructor: str
    threat: ThreatModel
    steps: int
    step_size: float | None
    final_step_size: float | None
    gamma: float
    final_gamma: float
    first_radius: float | None = None
    overshoot: float = 0.0
    at_bounds: AtBounds = "minded"
    keep: Keep = "first_success"
    seed: int = 0

    def __post_init__(self) -> None:
        self.check("steps")
        if getattr(self.threat, "unit", "entry") != "entry":
            raise ValueError(
                f"{self.constructor} counts entries; got {self.threat!r}. Use fastadv.L0() or pgd"
            )
        if self.at_bounds not in get_args(AtBounds):
            raise ValueError(
                f"at_bounds must be one of {get_args(AtBounds)}; got {self.at_bounds!r}"
            )
        for name in ("gamma", "final_gamma"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must lie between 0 and 1; got {getattr(self, name)}")
        for name in ("step_size", "final_step_size", "first_radius"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive; got {value}")
        if not self.overshoot >= 0:
            raise ValueError(f"overshoot must not be negative; got {self.overshoot}")

    @property
    def resolved_loss(self) -> losses.Loss:
        if self.constructor == "ddn":
            return losses.Loss("cross_entropy")
        return losses.UNCAPPED_MARGIN

    @property
    def effective_step_size(self) -> float:
        if self.step_size is not None:
            return self.step_size
        return self.width * (10.0 if self.threat.norm in ("linf", "l0") else 1.0)

    @property
    def _open(self) -> float:
        """FMN's radius while nothing is known, which in L0 grows from one entry on."""
        return 1.0 if self.threat.norm == "l0" else math.inf

    def schedule(self) -> tuple[tuple[float, float], ...]:
        """(step size, gamma) of each step: from the first to the final one by half a cosine."""
        shares = [(1 + math.cos(math.pi * step / self.steps)) / 2 for step in range(self.steps)]
        first, last = self.effective_step_size, self.final_step_size
        last = first / 100 if last is None else last
        return tuple(
            (
                last + (first - last) * share,
                self.final_gamma + (self.gamma - self.final_gamma) * share,
            )
            for share in shares
        )

    def algorithm(
        self, oracle: Oracle, *, targets: int, first_step: int, room: int
    ) -> SlotAlgorithm:
        is_ddn, first_radius = self.constructor == "ddn", self.first_radius
        moves = Moves(
            "ddn" if is_ddn else "fmn",
            self.schedule(),
            (self.width if first_radius is None else first_radius) if is_ddn else self._open,
            self.overshoot,
            self.at_bounds == "minded",
        )
        return RadiusSlots(oracle, self.threat, moves=moves, stop_early=self.stops_early)


@constructor
@in_norms("l2")
def ddn(
    threat: ThreatModel,
    *,
    steps: int = 100,
    step_size: float | None = None,
    final_step_size: float | None = None,
    first_radius: float | None = None,
    gamma: float = 0.05,
    at_bounds: AtBounds = "minded",
    keep: Keep = "first_success",
    seed: int = 0,
) -> RadiusAttack:
    """DDN, decoupled direction and norm: u = x_adv - x + a * g / ||g||_2, g being the gradient of
    the cross-entropy, and x_adv = clip(x + r * u / ||u||_2); the radius r shrinks by the factor
    1 - gamma after an adversarial point and grows by 1 + gamma after another one.

    threat: `fastadv.L2()`: of all points the nearest adversarial one is kept; with a radius,
    `fastadv.L2(0.5)`, a sample is finished with its first adversarial point within it. step_size,
    final_step_size: a falls from one, None for the width of the bounds (1 without any), to the
    other, None for a hundredth of it, by half a cosine. first_radius: r at first, None for the same
    width. at_bounds: "minded" leaves elements at a bound
    that the gradient points out of, out of g; "ignored" is what the authors do. keep: "best" makes
    all steps and returns the nearest adversarial point, though it be outside the radius. Where
    nothing is found the result is x, and without a radius the distance inf. seed: of models that
    draw numbers; the attack itself draws none. One forward and one backward pass a step.

    Raises ValueError for another norm than L2, and for masks or bounds of elements.
    Example: `fastadv.ddn(fastadv.L2()).run(model, x, y).distance`.
    Source: Rony et al. 2019, arXiv:1811.09600. Unlike adversarial-library's code, a tiny gradient
    gives a full step and not noise, and no point is rounded to 8 bits: see `fastadv.to_uint8`.
    """
    return RadiusAttack(
        "ddn",
        threat,
        steps,
        step_size,
        final_step_size,
        gamma,
        gamma,
        first_radius,
        at_bounds=at_bounds,
        keep=keep,
        seed=seed,
    )


@constructor
@in_norms("linf", "l2", "l1", "l0")
def fmn(
    threat: ThreatModel,
    *,
    steps: int = 100,
    step_size: float | None = None,
    final_step_size: float | None = None,
    gamma: float = 0.05,
    final_gamma: float = 0.001,
    overshoot: float = 0.02,
    at_bounds: AtBounds = "minded",
    keep: Keep = "first_success",
    seed: int = 0,
) -> RadiusAttack:
    """FMN, fast minimum norm: u = x_adv - x + a * g / ||g||_2, g being the gradient of the margin
    L = max_{j != y} z_j - z_y, u brought to the radius r, and x_adv = clip(x + u).

    While no adversarial point is known r = ||x_adv - x|| + (1 + overshoot) * |L| / ||g||, in the
    dual norm: as far as the boundary is in a linear model. Then r shrinks by the factor 1 - c after
    an adversarial point, at least to the nearest distance, and grows by 1 + c after another one. a
    falls from step_size, None for the width of the bounds (10 of them in L-infinity and L0), to
    final_step_size, None for a hundredth of it, and c from gamma to final_gamma, by half a cosine.
    threat: `fastadv.Linf()`, `L2()`, `L1()` or `L0()`; u is clamped to r, scaled to it, projected
    onto the L1 ball, or keeps r entries, the largest and what ties with the last; in L0 r begins
    with 1 and changes by 1 at least. at_bounds: "minded" leaves elements at a bound that the
    gradient points out of, out of g, and cuts the L1 ball by the bounds; "ignored" is what the
    authors do. Other arguments, passes, and what is returned, as in `fastadv.ddn`.

    Raises ValueError for masks, for radii or bounds of elements, and for an L0 of pixels.
    Example: `fastadv.fmn(fastadv.Linf()).run(model, x, y).distance`.
    Source: Pintor et al. 2021, arXiv:2102.12827. With step_size=1, overshoot=0 and
    at_bounds="ignored" these are the iterates of adversarial-library's code: without the overshoot
    points on saturated images reach the boundary from below and never cross it.
    """
    return RadiusAttack(
        "fmn",
        threat,
        steps,
        step_size,
        final_step_size,
        gamma,
        final_gamma,
        overshoot=overshoot,
        at_bounds=at_bounds,
        keep=keep,
        seed=seed,
    )
