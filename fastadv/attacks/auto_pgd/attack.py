"""APGD's attack objects: settings, checks, and the constructors that name them."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from fastadv import losses
from fastadv.attacks.attack import Attack, constructor
from fastadv.attacks.auto_pgd.slots import AutoPGDSlots, Course
from fastadv.attacks.auto_pgd.slots_l1 import AutoPGDL1Slots
from fastadv.attacks.call.settings import check_claims, check_counts, check_settings
from fastadv.elements import radius_of
from fastadv.engine.algorithm import SlotAlgorithm
from fastadv.objective import Objective
from fastadv.oracle.gradient import Oracle
from fastadv.threat_model import ThreatModel

Keep = Literal["first_success", "authors", "best"]


@dataclass(frozen=True, repr=False, eq=False)
class AutoPGD(Attack):
    """Auto-PGD; see `fastadv.apgd` and `fastadv.apgd_t` for the settings."""

    constructor: str
    threat: ThreatModel
    steps: int
    restarts: int
    loss: losses.LossName | losses.LossFunction | Objective
    n_target_classes: int = 0
    rho: float = 0.75
    large_radii: bool = False
    eot: int = 1
    keep: Keep = "first_success"
    seed: int = 0

    def __post_init__(self) -> None:
        check_settings(self, "steps", "restarts", "eot", keep=get_args(Keep))
        check_claims(self, get_args(Keep))
        if self.constructor == "apgd_t" and not isinstance(self.loss, str):
            raise ValueError(
                f"apgd_t aims at classes, by a loss that is named; got loss={self.loss!r}: use apgd"
            )
        if not 0 <= self.rho <= 1:
            raise ValueError(f"rho must be in [0, 1]; got {self.rho}")
        if self.constructor == "apgd_t":
            check_counts(self, "n_target_classes")
        if self.large_radii and self.threat.norm != "l1":
            raise ValueError(f"large_radii belongs to L1 only; got it for {self.threat!r}")
        if self.large_radii and self.steps < 4:
            raise ValueError(f"large_radii takes three phases: at least 4 steps; got {self.steps}")

    @property
    def resolved_loss(self) -> losses.Loss:
        return losses.resolve(self.loss, kappa=0.0, label_smoothing=0.0)

    @property
    def reported_loss(self) -> losses.Loss:
        return losses.UNCAPPED_MARGIN if self.most_targets else self.resolved_loss

    @property
    def effective_step_size(self) -> float | torch.Tensor:
        return radius_of(self.threat) * (1 if self.threat.norm == "l1" else 2)

    @property
    def passes(self) -> int:
        return self.eot

    @property
    def most_targets(self) -> int:
        return self.n_target_classes

    @property
    def takes_regions(self) -> bool:
        return self.threat.norm != "l1"

    @property
    def discards_outside(self) -> bool:
        return self.large_radii

    def algorithm(
        self, oracle: Oracle, *, targets: int, first_step: int, room: int
    ) -> SlotAlgorithm:
        course = Course(self.steps, self.restarts, targets, self.seed, self.keep, first_step)
        if self.threat.norm == "l1":
            return AutoPGDL1Slots(oracle, self.threat, course, large_radii=self.large_radii)
        return AutoPGDSlots(oracle, self.threat, course, rho=self.rho)


@constructor
def apgd(
    threat: ThreatModel,
    *,
    steps: int = 100,
    restarts: int = 1,
    loss: losses.LossName | losses.LossFunction | Objective = "ce",
    rho: float = 0.75,
    large_radii: bool = False,
    eot: int = 1,
    keep: Keep = "first_success",
    seed: int = 0,
) -> AutoPGD:
    """APGD on any loss: x_adv <- P(x_adv + a (P(x_adv + s d(g)) - x_adv) + (1 - a) v).

    v is the last move, a = 0.75, d(g) = sign(g) in L-infinity and g / ||g||_2 in L2. s starts at
    2 eps and is halved, going on from the best iterate, where at checkpoints (after 22, 41, 57, ...
    of 100 steps) fewer than rho of the last steps raised the loss, or nothing was gained since the
    last one. In L1 the signs of the largest entries move, as many as the best perturbation's
    support says, without momentum. threat: `Linf`, `L2` or `L1`. restarts: random starts a sample;
    the first that fools the model counts. loss: as in `pgd`; "ce" and "dlr" are `apgd_ce` and
    `apgd_dlr`. large_radii: L1 only, 30 % of the steps at 3 eps, 30 % at 2 eps, each projected into
    the next. eot: forward passes averaged a step. keep: "first_success" (a slot stops there),
    "authors" (all steps are made; the last misclassified iterate, as the authors' code returns) or
    "best" (highest loss over all steps). seed: of the starts.

    The start is uniform in the L-infinity ball, where the authors scale it to touch the sphere.

    Example: `fastadv.apgd(threat, loss=fastadv.objectives.segmentation())(model, x, y)`.
    Source: Croce and Hein 2020, arXiv:2003.01690; L1: 2021, arXiv:2103.01208.
    """
    return AutoPGD(
        "apgd",
        threat,
        steps,
        restarts,
        loss,
        rho=rho,
        large_radii=large_radii,
        eot=eot,
        keep=keep,
        seed=seed,
    )


@constructor
def apgd_ce(
    threat: ThreatModel,
    *,
    steps: int = 100,
    restarts: int = 1,
    rho: float = 0.75,
    large_radii: bool = False,
    eot: int = 1,
    keep: Keep = "first_success",
    seed: int = 0,
) -> AutoPGD:
    """`apgd` on the cross-entropy, AutoAttack's first attack. Arguments as in `apgd`.

    Example: `fastadv.apgd_ce(fastadv.Linf(8 / 255))(model, x, y)`.
    Source: Croce and Hein 2020, arXiv:2003.01690; L1: 2021, arXiv:2103.01208.
    """
    return AutoPGD(
        "apgd_ce",
        threat,
        steps,
        restarts,
        "ce",
        rho=rho,
        large_radii=large_radii,
        eot=eot,
        keep=keep,
        seed=seed,
    )


@constructor
def apgd_dlr(
    threat: ThreatModel,
    *,
    steps: int = 100,
    restarts: int = 1,
    rho: float = 0.75,
    large_radii: bool = False,
    eot: int = 1,
    keep: Keep = "first_success",
    seed: int = 0,
) -> AutoPGD:
    """`apgd` on the difference of logits ratio, -(z_y - max_{j != y} z_j) / (z_pi1 - z_pi3).

    Needs three classes, four with target=. Other arguments as in `apgd`.
    Example: `fastadv.apgd_dlr(fastadv.Linf(8 / 255))(model, x, y)`.
    Source: Croce and Hein 2020, arXiv:2003.01690, section 4.
    """
    return AutoPGD(
        "apgd_dlr",
        threat,
        steps,
        restarts,
        "dlr",
        rho=rho,
        large_radii=large_radii,
        eot=eot,
        keep=keep,
        seed=seed,
    )


@constructor
def apgd_t(
    threat: ThreatModel,
    *,
    steps: int = 100,
    restarts: int = 1,
    n_target_classes: int = 9,
    loss: losses.LossName = "dlr",
    rho: float = 0.75,
    large_radii: bool = False,
    eot: int = 1,
    keep: Keep = "first_success",
    seed: int = 0,
) -> AutoPGD:
    """`apgd` on the targeted DLR loss, aimed in turn at the likeliest wrong classes.

    -(z_y - z_t) / (z_pi1 - (z_pi3 + z_pi4) / 2) for t among the n_target_classes (at most C - 1)
    wrong classes of highest clean logit; any misclassification is a success. loss: "dlr" needs four
    classes, "margin" and "difference" (z_t - z_y) two. Other arguments as in `apgd`.

    Example: `fastadv.apgd_t(fastadv.Linf(8 / 255), n_target_classes=3)(model, x, y)`.
    Source: Croce and Hein 2020, arXiv:2003.01690, section 4.
    """
    return AutoPGD(
        "apgd_t",
        threat,
        steps,
        restarts,
        loss,
        n_target_classes=n_target_classes,
        rho=rho,
        large_radii=large_radii,
        eot=eot,
        keep=keep,
        seed=seed,
    )
