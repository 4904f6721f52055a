"""The Square Attack's object: settings, checks, and its constructor."""

from dataclasses import dataclass
from typing import Literal, get_args

from fastadv import losses
from fastadv.attacks.attack import Attack, constructor
from fastadv.attacks.call.settings import check_claims, check_settings
from fastadv.attacks.square_search.slots import SquareSlots
from fastadv.engine.algorithm import SlotAlgorithm
from fastadv.objective import Objective, uncalled
from fastadv.oracle.gradient import Oracle
from fastadv.threat_model import ThreatModel

Keep = Literal["first_success"]


@dataclass(frozen=True, repr=False, eq=False)
class SquareAttack(Attack):
    """The Square Attack; see `fastadv.square` for the settings."""

    constructor: str
    threat: ThreatModel
    queries: int
    restarts: int
    p_init: float
    rescale: bool
    loss: Literal["margin"] | Objective = "margin"
    seed: int = 0
    keep: Keep = "first_success"

    def __post_init__(self) -> None:
        check_settings(self, "queries", "restarts", keep=get_args(Keep))
        if not 0 < self.p_init <= 1:
            raise ValueError(f"p_init must be in (0, 1]; got {self.p_init}")
        if forgotten := uncalled(self.loss):
            raise TypeError(forgotten)
        if self.loss != "margin" and not isinstance(self.loss, Objective):
            raise ValueError(f"loss must be 'margin' or a fastadv.Objective; got {self.loss!r}")
        check_claims(self, get_args(Keep))

    @property
    def steps(self) -> int:
        return self.queries

    @property
    def takes_gradients(self) -> bool:
        return False

    @property
    def resolved_loss(self) -> losses.Loss:
        return losses.resolve(self.loss, kappa=0.0, label_smoothing=0.0)

    @property
    def reported_loss(self) -> losses.Loss:
        return losses.UNCAPPED_MARGIN if self.loss == "margin" else self.resolved_loss

    @property
    def effective_step_size(self) -> float:
        return 0.0  # its moves come from a table

    def algorithm(
        self, oracle: Oracle, *, targets: int, first_step: int, room: int
    ) -> SlotAlgorithm:
        if oracle.judge.targeted:
            raise ValueError("square lowers the margin of the label and takes no target=")
        return SquareSlots(
            oracle,
            self.threat,
            queries=self.queries,
            restarts=self.restarts,
            p_init=self.p_init,
            rescale=self.rescale,
            seed=self.seed,
            first_step=first_step,
            room=room,
        )


@constructor
def square(
    threat: ThreatModel,
    *,
    queries: int = 5000,
    restarts: int = 1,
    p_init: float = 0.8,
    rescale: bool = False,
    loss: Literal["margin"] | Objective = "margin",
    seed: int = 0,
) -> SquareAttack:
    """Square Attack: random search by squares, min(max(x_best + 2 eps sign, x - eps), x + eps) in a
    window, kept where it lowers the margin z_y - max_{j != y} z_j; no gradient is used.

    threat: `Linf`, `L2` or `L1`. x: images (B, C, H, W); in L2 and L1 at least 5 x 5. queries: of
    each restart, after its start. p_init: share of the pixels that the first squares cover; it is
    halved after 10, 50, 200, 500, 1000, 2000 and 4000 queries, with rescale after as many of
    10,000. Windows are drawn once for all samples; a sample ends at its first success. A query that
    would change nothing is passed over, which cannot change the result. Needs no targets. loss:
    "margin", or a `fastadv.Objective`, whose loss is raised until its success.

    Example: `fastadv.square(fastadv.Linf(8 / 255), queries=1000)(model, x, y)`.
    Source: Andriushchenko et al. 2020, arXiv:1912.00049.
    """
    return SquareAttack("square", threat, queries, restarts, p_init, rescale, loss, seed=seed)
