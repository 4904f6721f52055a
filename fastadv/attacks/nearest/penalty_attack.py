"""C&W's attack object: settings, checks, and the constructor."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from fastadv import losses
from fastadv.attacks.attack import constructor, in_norms
from fastadv.attacks.nearest.penalty_slots import PenaltySlots
from fastadv.attacks.nearest.search import Keep, NearestAttack
from fastadv.elements import common_bounds
from fastadv.engine.algorithm import SlotAlgorithm
from fastadv.ops.nearest.penalty import Course, schedule
from fastadv.oracle.gradient import Oracle
from fastadv.threat_model import ThreatModel

Variable = Literal["clipped", "tanh"]
# step size, first constant and its increase
_DEFAULTS = {"l2": (0.1, 1e-3, 10.0), "linf": (0.01, 0.1, 2.0)}
_DECREASE, _MOST = 0.9, 20.0  # of L-infinity, the authors'
_NO_END = 2**30


@dataclass(frozen=True, repr=False, eq=False)
class PenaltyAttack(NearestAttack):
    """C&W; see `fastadv.cw` for the settings."""

    constructor: str
    threat: ThreatModel
    steps: int
    search_steps: int
    step_size: float | None
    final_step_size: float | None
    relative_step: float | None
    settled: float
    first_constant: float | None
    kappa: float
    variable: Variable
    abort_early: bool
    keep: Keep
    seed: int

    def __post_init__(self) -> None:
        self.check("steps", "search_steps")
        if self.variable not in get_args(Variable):
            raise ValueError(f"variable must be one of {get_args(Variable)}; got {self.variable!r}")
        for name in ("step_size", "final_step_size", "relative_step", "first_constant"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive; got {value}")
        if not 0 <= self.settled < 1:
            raise ValueError(f"settled must lie in [0, 1); got {self.settled}")
        if self.variable == "tanh" and common_bounds(self.threat) is None:
            raise ValueError(f"variable='tanh' needs bounds, which {self.threat!r} has not")
        losses.resolve("margin", kappa=self.kappa, label_smoothing=0.0)

    @property
    def resolved_loss(self) -> losses.Loss:
        return losses.Loss("margin", self.kappa)

    @property
    def effective_step_size(self) -> float:
        return self._first_size * self.width

    @property
    def _first_size(self) -> float:
        return _DEFAULTS[self.threat.norm][0] if self.step_size is None else self.step_size

    def _step_sizes(self) -> list[float]:
        """Of each step of a round: from the first to the final one by half a cosine."""
        first, last = self._first_size, self.final_step_size
        last = first / 100 if last is None else last
        shares = [(1 + math.cos(math.pi * step / self.steps)) / 2 for step in range(self.steps)]
        return [last + (first - last) * share for share in shares]

    def algorithm(
        self, oracle: Oracle, *, targets: int, first_step: int, room: int
    ) -> SlotAlgorithm:
        _, constant, increase = _DEFAULTS[self.threat.norm]
        course = Course(
            unit=self.width,
            kappa=self.kappa,
            increase=increase,
            decrease=_DECREASE,
            most=_MOST,
            settled=int(self.settled * self.steps),
            relative=0.0 if self.relative_step is None else self.relative_step / self._first_size,
            rounds=self.search_steps if self.threat.norm == "l2" else _NO_END,
            points=self.search_steps * self.steps,
            squashed=self.variable == "tanh",
            abort_early=self.abort_early,
        )
        return PenaltySlots(
            oracle,
            self.threat,
            course=course,
            schedule=schedule(self._step_sizes()),
            constant=constant if self.first_constant is None else self.first_constant,
            stop_early=self.stops_early,
        )


@constructor
@in_norms("l2", "linf")
def cw(
    threat: ThreatModel,
    *,
    steps: int = 100,
    search_steps: int = 9,
    step_size: float | None = None,
    final_step_size: float | None = None,
    relative_step: float | None = 0.2,
    settled: float = 0.8,
    first_constant: float | None = None,
    kappa: float = 0.0,
    variable: Variable = "clipped",
    abort_early: bool = True,
    keep: Keep = "first_success",
    seed: int = 0,
) -> PenaltyAttack:
    """C&W: minimise q + c * max(z_y - max_{j != y} z_j + kappa, 0) by Adam, in search_steps rounds
    of `steps` steps, each with another constant c; q = ||x_adv - x||_2^2, in units of the width of
    the bounds, in L-infinity sum(max(|x_adv - x| - tau, 0)).

    threat: `fastadv.L2()` or `Linf()`, or with a radius: then and now as in `fastadv.ddn`, as are
    keep, what is returned and the passes. A point must be adversarial by kappa, for samples that
    are attacked. c is a sample's own: first_constant, None for 0.001 (L-infinity 0.1), ten times as
    much (twice) while it fails; then, in L2, the middle of what failed and what worked, and in
    L-infinity tau, 1 at first, falls to 0.9 of the nearest distance. There rounds end as soon as
    the loss is below c / 10,000, until all steps are made or c is 20.
    step_size: Adam's, in units of the width, None for 0.1 (0.01); in each round it falls to
    final_step_size, None for a hundredth of it, by half a cosine. relative_step: in a round after a
    success it begins no higher than this times the nearest distance (L2: over the root of the
    number of elements); None: where it always begins. settled: the share of a round of L2 after
    which a success says that c works, which before may be the first steps' doing. abort_early: such
    a round ends, from there on, where its loss has not fallen for a tenth of it, whatever other
    samples do. variable: "clipped" is x_adv itself, kept in bounds; "tanh" is w with x_adv =
    (tanh(w) + 1) / 2, in which elements at a bound move by little.

    Raises ValueError for another norm, for masks or bounds of elements, for "tanh" without bounds.
    Example: `fastadv.cw(fastadv.L2(), steps=50).run(model, x, y).distance`.
    Source: Carlini and Wagner 2017, arXiv:1608.04644. variable="tanh", final_step_size=step_size,
    relative_step=None and settled=0.0 give the iterates of adversarial-library's code for a single
    sample, step_size=0.01 its defaults; there a batch goes on until no sample's loss falls.
    """
    return PenaltyAttack(
        "cw",
        threat,
        steps,
        search_steps,
        step_size,
        final_step_size,
        relative_step,
        settled,
        first_constant,
        kappa,
        variable,
        abort_early,
        keep,
        seed,
    )
