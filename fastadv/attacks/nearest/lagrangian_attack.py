"""ALMA's attack object: settings, checks, and the constructor."""

import math
from dataclasses import dataclass

from fastadv import losses
from fastadv.attacks.attack import constructor, in_norms
from fastadv.attacks.nearest.lagrangian_slots import LagrangianSlots
from fastadv.attacks.nearest.search import Keep, NearestAttack
from fastadv.engine.algorithm import SlotAlgorithm
from fastadv.ops.nearest.lagrangian import Course
from fastadv.oracle.gradient import Oracle
from fastadv.threat_model import ThreatModel


@dataclass(frozen=True, repr=False, eq=False)
class LagrangianAttack(NearestAttack):
    """ALMA; see `fastadv.alma` for the settings."""

    constructor: str
    threat: ThreatModel
    steps: int
    step_size: float | None
    reduction: float
    check_steps: int
    improvement: float
    increase: float
    smoothing: float
    tolerance: float
    keep: Keep
    seed: int

    def __post_init__(self) -> None:
        self.check("steps", "check_steps")
        if self.step_size is not None and not self.step_size > 0:
            raise ValueError(f"step_size must be positive; got {self.step_size}")
        for name in ("reduction", "improvement", "smoothing"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie above 0, up to 1; got {getattr(self, name)}")
        if not self.increase >= 1:
            raise ValueError(f"increase must be at least 1; got {self.increase}")
        if not self.tolerance >= 0:
            raise ValueError(f"tolerance must not be negative; got {self.tolerance}")

    @property
    def resolved_loss(self) -> losses.Loss:
        return losses.Loss("ratio", self.tolerance)

    @property
    def effective_step_size(self) -> float:
        return 0.1 * self.width if self.step_size is None else self.step_size

    def algorithm(
        self, oracle: Oracle, *, targets: int, first_step: int, room: int
    ) -> SlotAlgorithm:
        course = Course(
            rate=self.effective_step_size / self.width,
            reach=0.1 * self.width if self.step_size is None else 0.0,
            fall=math.log(self.reduction),
            unit=self.width,
            rms=self.smoothing,
            inertia=self.smoothing,
            smoothing=1.0 - self.smoothing,
            improvement=self.improvement,
            increase=self.increase,
            steps=self.steps,
            check_steps=self.check_steps,
        )
        return LagrangianSlots(oracle, self.threat, course=course, stop_early=self.stops_early)


@constructor
@in_norms("l2")
def alma(
    threat: ThreatModel,
    *,
    steps: int = 1000,
    step_size: float | None = None,
    reduction: float = 0.01,
    check_steps: int = 10,
    improvement: float = 0.95,
    increase: float = 1.2,
    smoothing: float = 0.9,
    tolerance: float = 1e-4,
    keep: Keep = "first_success",
    seed: int = 0,
) -> LagrangianAttack:
    """ALMA, augmented Lagrangian: ||x_adv - x||_2 + P(D) is minimised by RMSProp with momentum,
    where D = (z_y - max_{j != y} z_j + tolerance) / (z_pi1 - z_pi3 + 1e-8) is below 0 at an
    adversarial point, and P(D) = mu D + mu rho D^2 + rho^2 D^3 / 6, for D < 0 mu D / (1 - rho D).

    threat: `fastadv.L2()`, or with a radius; this, keep, what is returned, and the passes are as in
    `fastadv.ddn`. mu follows dP/dD by 1 - smoothing a step; rho grows by the factor `increase` at
    every check_steps-th step at which no adversarial point is known and D is not below
    `improvement` times what it was at the last check. step_size, None for the one with which a
    first step along the gradient alone is a tenth of the width of the bounds long, falls to
    step_size * reduction from the first adversarial point of a sample to the last step. smoothing:
    of the means of squares and of steps, too. tolerance: by how much an adversarial point must be
    one, over the same denominator.

    Raises ValueError for another norm than L2, for masks or bounds of elements, and for fewer than
    three classes, targeted four.
    Example: `fastadv.alma(fastadv.L2(), steps=300).run(model, x, y).distance`.
    Source: Rony et al. 2021, arXiv:2011.11857. Unlike adversarial-library's code, a targeted point
    must reach its target by the tolerance, and does not miss it by as much.
    """
    return LagrangianAttack(
        "alma",
        threat,
        steps,
        step_size,
        reduction,
        check_steps,
        improvement,
        increase,
        smoothing,
        tolerance,
        keep,
        seed,
    )
