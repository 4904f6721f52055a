"""Sigma-zero's attack object: settings, checks, and the constructor."""

import math
from dataclasses import dataclass

from fastadv import losses
from fastadv.attacks.attack import constructor, in_norms
from fastadv.attacks.nearest.search import Keep, NearestAttack
from fastadv.attacks.nearest.sparse_slots import Moves, SparseSlots
from fastadv.engine.algorithm import SlotAlgorithm
from fastadv.oracle.gradient import Oracle
from fastadv.threat_model import ThreatModel

_FIRST, _SECOND = 0.9, 0.999  # Adam's means of gradients and of their squares
_LAST = 0.1  # of the step size


@dataclass(frozen=True, repr=False, eq=False)
class SparseAttack(NearestAttack):
    """Sigma-zero; see `fastadv.sigma_zero` for the settings."""

    constructor: str
    threat: ThreatModel
    steps: int
    step_size: float | None
    threshold: float
    threshold_factor: float
    smoothing: float
    keep: Keep
    seed: int

    def __post_init__(self) -> None:
        self.check("steps")
        if getattr(self.threat, "unit", "entry") != "entry":
            raise ValueError(
                f"{self.constructor} counts entries; got {self.threat!r}. Use fastadv.L0() or pgd"
            )
        for name in ("step_size", "smoothing"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive; got {value}")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold must lie in [0, 1]; got {self.threshold}")
        if not self.threshold_factor >= 0:
            raise ValueError(f"threshold_factor must not be negative; got {self.threshold_factor}")

    @property
    def resolved_loss(self) -> losses.Loss:
        return losses.UNCAPPED_MARGIN

    @property
    def effective_step_size(self) -> float:
        return self.width if self.step_size is None else self.step_size

    def schedule(self) -> tuple[tuple[float, float, float], ...]:
        """(step size over Adam's first correction, inverse root of its second, change of the
        threshold) of each step; the step size falls to a tenth by half a cosine."""
        whole = self.effective_step_size / self.width
        rows, rate = [], whole
        for step in range(self.steps):
            first, second = 1 - _FIRST ** (step + 1), 1 - _SECOND ** (step + 1)
            after = whole * (_LAST + (1 - _LAST) * (1 + math.cos(math.pi * step / self.steps)) / 2)
            rows.append((rate / first, second**-0.5, self.threshold_factor * after))
            rate = after
        return tuple(rows)

    def algorithm(
        self, oracle: Oracle, *, targets: int, first_step: int, room: int
    ) -> SlotAlgorithm:
        moves = Moves(self.schedule(), self.threshold, self.smoothing, self.width)
        return SparseSlots(oracle, self.threat, moves=moves, stop_early=self.stops_early)


@constructor
@in_norms("l0")
def sigma_zero(
    threat: ThreatModel,
    *,
    steps: int = 1000,
    step_size: float | None = None,
    threshold: float = 0.3,
    threshold_factor: float = 0.01,
    smoothing: float = 1e-3,
    keep: Keep = "first_success",
    seed: int = 0,
) -> SparseAttack:
    """Sigma-zero: Adam on max(z_y - max_{j != y} z_j, 0) + mean(d^2 / (d^2 + smoothing)), d being
    x_adv - x over the width of the bounds; entries with |d| below a threshold are put back to x.

    threat: `fastadv.L0()`, or with a number of entries; this, keep, what is returned, and the
    passes are as in `fastadv.ddn`. The gradient is divided by its largest entry. step_size, None
    for the width of the bounds, falls to a tenth by half a cosine. threshold: the first one, in
    units of that width; it rises by threshold_factor times the step size after an adversarial
    point, and falls by as much after another one. smoothing: the smaller, the closer to a count.
    Entries that are not changed are those of x, bit for bit.

    Raises ValueError for another norm than L0, for L0 of pixels, for masks or bounds of elements.
    Example: `fastadv.sigma_zero(fastadv.L0(), steps=300).run(model, x, y).distance`.
    Source: Cina et al. 2024, arXiv:2402.01879. The points are those of adversarial-library's code,
    which takes no targets.
    """
    return SparseAttack(
        "sigma_zero",
        threat,
        steps,
        step_size,
        threshold,
        threshold_factor,
        smoothing,
        keep,
        seed,
    )
