"""PDGD's and PDPGD's attack object: settings, checks, and the constructors."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from fastadv import losses
from fastadv.attacks.attack import constructor, in_norms
from fastadv.attacks.nearest.primal_dual_slots import PrimalDualSlots
from fastadv.attacks.nearest.search import Keep, NearestAttack
from fastadv.engine.algorithm import SlotAlgorithm
from fastadv.ops.nearest.primal_dual import Course, first_duals, schedule
from fastadv.oracle.gradient import Oracle
from fastadv.threat_model import ThreatModel

Proximal = Literal["norm", "l2/3"]


@dataclass(frozen=True, repr=False, eq=False)
class PrimalDualAttack(NearestAttack):
    """PDGD or PDPGD; see `fastadv.pdgd` and `fastadv.pdpgd` for the settings."""

    constructor: str
    threat: ThreatModel
    steps: int
    step_size: float
    reduction: float
    first_ratio: float
    dual_step_size: float
    dual_reduction: float
    smoothing: float
    least_ratio: float
    proximal_steps: int | None = None
    proximal: Proximal | None = None
    tolerance: float = 0.0
    keep: Keep = "first_success"
    seed: int = 0

    def __post_init__(self) -> None:
        self.check("steps", *(() if self.proximal_steps is None else ("proximal_steps",)))
        if getattr(self.threat, "unit", "entry") != "entry":
            raise ValueError(
                f"{self.constructor} counts entries; got {self.threat!r}. Use fastadv.L0() or pgd"
            )
        if self.proximal not in (None, *get_args(Proximal)):
            raise ValueError(f"proximal must be one of {get_args(Proximal)}; got {self.proximal!r}")
        for name in ("step_size", "dual_step_size"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive; got {getattr(self, name)}")
        for name in ("reduction", "dual_reduction"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie above 0, up to 1; got {getattr(self, name)}")
        for name in ("smoothing", "tolerance"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1); got {getattr(self, name)}")
        if not 0 < self.least_ratio < 1:
            raise ValueError(f"least_ratio must lie between 0 and 1; got {self.least_ratio}")
        if not self.least_ratio <= self.first_ratio <= 1 / self.least_ratio:
            raise ValueError(
                f"first_ratio must lie within least_ratio and its inverse; got {self.first_ratio}"
            )

    @property
    def resolved_loss(self) -> losses.Loss:
        return losses.UNCAPPED_MARGIN

    @property
    def effective_step_size(self) -> float:
        return self.step_size * self.width

    @property
    def _drops_small(self) -> bool:
        """Whether small elements are dropped and larger ones shrunk, by |.|^(2/3)."""
        return self.proximal == "l2/3" or (self.proximal is None and self.threat.norm == "l0")

    def schedule(self) -> list[tuple[float, ...]]:
        last = max(self.steps - 1, 1)
        sizes = [
            self.step_size * self.reduction ** (step / self.steps) for step in range(self.steps)
        ]
        fall = (1 - self.dual_reduction) / last
        dual_sizes = [self.dual_step_size * (1 - fall * step) for step in range(self.steps)]
        return schedule(sizes, dual_sizes)

    def algorithm(
        self, oracle: Oracle, *, targets: int, first_step: int, room: int
    ) -> SlotAlgorithm:
        course = Course(
            unit=self.width,
            most=-math.log(self.least_ratio),
            smoothing=1.0 - self.smoothing,
            turns=self.proximal_steps or 0,
            change=self.tolerance,
        )
        return PrimalDualSlots(
            oracle,
            self.threat,
            course=course,
            schedule=self.schedule(),
            first=first_duals(self.first_ratio),
            pull="l2/3" if self._drops_small else None,
            stop_early=self.stops_early,
        )


@constructor
@in_norms("linf", "l2", "l1", "l0")
def pdpgd(
    threat: ThreatModel,
    *,
    steps: int = 500,
    step_size: float = 0.1,
    reduction: float = 0.01,
    first_ratio: float = 0.01,
    dual_step_size: float = 0.1,
    dual_reduction: float = 0.1,
    smoothing: float = 0.9,
    least_ratio: float = 1e-6,
    proximal: Proximal | None = None,
    proximal_steps: int = 5,
    tolerance: float = 0.01,
    keep: Keep = "first_success",
    seed: int = 0,
) -> PrimalDualAttack:
    """PDPGD, primal-dual proximal gradient descent: a * ||x_adv - x|| + b * log(1 + exp(m)) is
    minimised, m = z_y - max_{j != y} z_j, by Adam on the logarithm and a proximal step of the
    distance in Adam's metric, while log(b / a) rises where m > 0 and falls where m < 0.

    threat: `fastadv.Linf()`, `L2()`, `L1()` or `L0()`, or with a radius; this, keep, what is
    returned, and the passes are as in `fastadv.ddn`. Adam's step size, in units of the width of the
    bounds (of 1 without any), falls from step_size by a constant factor a step to
    step_size * reduction. a / b is first_ratio at first; the steps of log(b / a) fall linearly from
    dual_step_size to dual_step_size * dual_reduction, and it stays within +-log(1 / least_ratio).
    smoothing: of a and b, which follow it. proximal: of the "norm", or "l2/3" with the sum of
    |.|^(2/3) in its place; None for that in L0 and the norm else. A proximal step is at most
    proximal_steps iterations; a sample's end with one that changes its difference by no more than
    `tolerance` of its length in L2. With the defaults log(b / a) needs some 200 steps to where the
    boundary is: fewer steps find long distances.

    Raises ValueError for masks, for radii or bounds of elements, and for an L0 of pixels.
    Example: `fastadv.pdpgd(fastadv.L1(), steps=400).run(model, x, y).distance`.
    Source: Matyasko and Chau 2021, arXiv:2106.01538. These are the iterates of
    adversarial-library's code (in L0 of its proximal_operator=23), but that steps=1 is an error
    there, and that its own operator of L0 keeps or drops all channels of a pixel together.
    """
    return PrimalDualAttack(
        "pdpgd",
        threat,
        steps,
        step_size,
        reduction,
        first_ratio,
        dual_step_size,
        dual_reduction,
        smoothing,
        least_ratio,
        proximal_steps,
        proximal,
        tolerance,
        keep,
        seed,
    )


@constructor
@in_norms("l2")
def pdgd(
    threat: ThreatModel,
    *,
    steps: int = 500,
    step_size: float = 0.1,
    reduction: float = 0.01,
    first_ratio: float = 0.01,
    dual_step_size: float = 0.1,
    dual_reduction: float = 0.1,
    smoothing: float = 0.9,
    least_ratio: float = 1e-6,
    keep: Keep = "first_success",
    seed: int = 0,
) -> PrimalDualAttack:
    """PDGD, primal-dual gradient descent: a * ||x_adv - x||_2 + b * log(1 + exp(m)) is minimised,
    m = z_y - max_{j != y} z_j, by Adam, while log(b / a) rises where m > 0 and falls where m < 0.

    threat: `fastadv.L2()`, or with a radius. All settings, passes, and what is returned, as in
    `fastadv.pdpgd`, which takes the distance by proximal steps.

    Raises ValueError for another norm than L2, and for masks or bounds of elements.
    Example: `fastadv.pdgd(fastadv.L2(), steps=400).run(model, x, y).distance`.
    Source: Matyasko and Chau 2021, arXiv:2106.01538. These are the iterates of
    adversarial-library's code, but that steps=1 is an error there.
    """
    return PrimalDualAttack(
        "pdgd",
        threat,
        steps,
        step_size,
        reduction,
        first_ratio,
        dual_step_size,
        dual_reduction,
        smoothing,
        least_ratio,
        keep=keep,
        seed=seed,
    )
