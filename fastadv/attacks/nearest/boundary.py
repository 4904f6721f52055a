"""DeepFool: settings, checks, and its constructor."""

from dataclasses import dataclass
from typing import get_args

from fastadv import losses
from fastadv.attacks.attack import Attack, constructor, in_norms, norms_of
from fastadv.attacks.call.settings import check_settings
from fastadv.attacks.nearest.attack import AtBounds, Keep
from fastadv.attacks.nearest.boundary_slots import BoundarySlots, Moves
from fastadv.engine.algorithm import SlotAlgorithm
from fastadv.oracle.gradient import Oracle
from fastadv.threat_model import ThreatModel


@dataclass(frozen=True, repr=False, eq=False)
class BoundaryAttack(Attack):
    """DeepFool; see `fastadv.deepfool` for the settings."""

    constructor: str
    threat: ThreatModel
    steps: int
    overshoot: float
    slack: float
    at_bounds: AtBounds = "minded"
    keep: Keep = "first_success"
    seed: int = 0
    restarts: int = 1

    def __post_init__(self) -> None:
        check_settings(self, "steps", keep=get_args(Keep))
        norms = norms_of(self.constructor)
        if self.threat.norm not in norms:
            raise ValueError(
                f"{self.constructor} takes threat models in {' and '.join(norms)} only; got "
                f"{self.threat!r}"
            )
        if self.at_bounds not in get_args(AtBounds):
            raise ValueError(
                f"at_bounds must be one of {get_args(AtBounds)}; got {self.at_bounds!r}"
            )
        for name in ("overshoot", "slack"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative; got {getattr(self, name)}")

    @property
    def resolved_loss(self) -> losses.Loss:
        return losses.UNCAPPED_MARGIN

    @property
    def effective_step_size(self) -> float:
        return 0.0  # its steps go to the boundary

    @property
    def needs_radius(self) -> bool:
        return False

    @property
    def notes_nearest(self) -> bool:
        return True

    def backwards_a_step(self, classes: int) -> int:
        return classes - 1

    @property
    def attacks_wrong(self) -> bool:
        return False

    @property
    def discards_outside(self) -> bool:
        return self.keep != "best"

    @property
    def resolves_finely(self) -> bool:
        return True  # as FAB's, its points lie beside the decision boundary

    def algorithm(
        self, oracle: Oracle, *, targets: int, first_step: int, room: int
    ) -> SlotAlgorithm:
        if oracle.judge.targeted:
            raise ValueError("deepfool goes to the nearest class and takes no target=: use fmn")
        moves = Moves(self.overshoot, self.slack, self.at_bounds == "minded")
        return BoundarySlots(oracle, self.threat, steps=self.steps, moves=moves)


@constructor
@in_norms("linf", "l2")
def deepfool(
    threat: ThreatModel,
    *,
    steps: int = 50,
    overshoot: float = 0.02,
    slack: float = 1e-4,
    at_bounds: AtBounds = "minded",
    keep: Keep = "first_success",
    seed: int = 0,
) -> BoundaryAttack:
    """DeepFool: x_adv <- clip(x_adv + (1 + overshoot) * r), r the way to the nearest boundary of
    the model linearised at x_adv, until the model misclassifies.

    With f_k = z_k - z_y and w_k its gradient, k is the class of the least |f_k| / ||w_k|| in the
    dual norm, and r is that distance plus slack along w_k / ||w_k||_2 (L2) or sign(w_k)
    (L-infinity). threat: `fastadv.L2()` or `Linf()`; a radius, as in `fastadv.L2(0.5)`, only says
    which results are a success. A sample is finished with its first adversarial point. slack: in
    input units; with slack=0, as in torchattacks, points on saturated images reach the boundary
    from below and never cross it. at_bounds: "minded" leaves elements at a bound that w_k points
    out of, out of it, once k is chosen; "ignored" is what the authors do. keep: "best" returns the
    adversarial point though it be outside the radius. Where nothing is found the result is x, and
    without a radius the distance inf. seed: of models that draw numbers; the attack itself draws
    none. Every step takes one forward pass and a backward pass for each class but the label, all at
    once where the model's operations can be vectorised.

    Raises ValueError for another norm, for target=, and for masks or bounds of elements.
    Example: `fastadv.deepfool(fastadv.L2()).run(model, x, y).distance`.
    Source: Moosavi-Dezfooli et al. 2016, arXiv:1511.04599. With at_bounds="ignored" these are the
    iterates of adversarial-library's code, which takes 100 steps.
    """
    return BoundaryAttack(
        "deepfool",
        threat,
        steps,
        overshoot,
        slack,
        at_bounds=at_bounds,
        keep=keep,
        seed=seed,
    )
