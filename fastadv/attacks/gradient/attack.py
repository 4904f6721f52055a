"""FGSM, BIM, PGD and MI-FGSM as attack objects: their settings and checks."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from fastadv import losses
from fastadv.attacks.attack import Attack
from fastadv.attacks.call.settings import check_claims, check_settings
from fastadv.attacks.gradient.slots import Begin, ProjectedGradient, RandomStart, start_kinds
from fastadv.elements import radius_of
from fastadv.objective import Objective
from fastadv.oracle.gradient import Oracle
from fastadv.threat_model import ThreatModel

Keep = Literal["first_success", "last", "best"]
# in units of eps: of 160 points of three networks, at the median of the smallest known distances
# and at twice that, from x and at random (40 steps), steps of 10, 30, 100, 300 and 1,000 broke 128,
# 172, 209, 232 and 228 of 640
_L0_STEP = 300.0
_DEFAULT_SPARSITY = 0.05  # of the entries move in an L1 step


@dataclass(frozen=True, repr=False, eq=False)
class GradientAttack(Attack):
    """Projected gradient ascent with fixed steps; see `fastadv.pgd` for the settings."""

    constructor: str
    threat: ThreatModel
    steps: int
    step_size: float | torch.Tensor | None
    restarts: int = 1
    random_start: bool | RandomStart = False
    clamp_start: bool = True
    loss: losses.LossName | losses.LossFunction | Objective = "ce"
    kappa: float = 0.0
    label_smoothing: float = 0.0
    eot: int = 1
    decay: float | None = None
    sparsity: float | None = None
    guard: float = 0.0
    keep: Keep = "first_success"
    seed: int = 0

    def __post_init__(self) -> None:
        check_settings(self, "steps", "restarts", "eot", keep=get_args(Keep))
        kinds = start_kinds(self.threat)
        if not isinstance(self.random_start, bool) and self.random_start not in kinds:
            raise ValueError(
                f"random_start must be a bool or one of {kinds}; got {self.random_start!r}"
            )
        if self.restarts > 1 and not self.random_start:
            raise ValueError(
                f"restarts={self.restarts} needs a random start: without one all are the same"
            )
        if self.restarts > 1 and self.keep == "last":
            raise ValueError("keep='last' takes restarts=1: use 'first_success' or 'best'")
        if self.decay is not None and not math.isfinite(self.decay):
            raise ValueError(f"decay must be finite; got {self.decay}")
        if self.sparsity is not None and not 0 < self.sparsity <= 1:
            raise ValueError(f"sparsity must be in (0, 1]; got {self.sparsity}")
        if not self.guard >= 0:
            raise ValueError(f"guard must not be negative; got {self.guard}")
        for name, norm in (("sparsity", "l1"), ("guard", "l2")):
            if getattr(self, name) and self.threat.norm != norm:
                raise ValueError(
                    f"{name} belongs to {norm.upper()} only; got {name}={getattr(self, name)} for "
                    f"{self.threat!r}"
                )
        if self.step_size is not None:
            if not isinstance(self.step_size, (int, float, torch.Tensor)):
                raise TypeError(f"step_size must be a float or a tensor; got {self.step_size!r}")
            step = torch.as_tensor(self.step_size)
            if not bool((step.isfinite() & (step >= 0)).all()):
                raise ValueError(f"step_size must be finite and >= 0; got {self.step_size}")
        check_claims(self, get_args(Keep))

    @property
    def resolved_loss(self) -> losses.Loss:
        return losses.resolve(self.loss, kappa=self.kappa, label_smoothing=self.label_smoothing)

    @property
    def effective_step_size(self) -> float | torch.Tensor:
        """step_size, or the constructor's default in terms of eps."""
        if self.step_size is not None:
            return self.step_size
        eps = radius_of(self.threat)
        if isinstance(eps, torch.Tensor) and eps.element_size() < 4:
            eps = eps.float()  # a step of a rounded radius would be rounded again
        return eps * _DEFAULT_STEP.get(self.constructor, _madry_step)(self)

    @property
    def effective_sparsity(self) -> float:
        return _DEFAULT_SPARSITY if self.sparsity is None else self.sparsity

    @property
    def passes(self) -> int:
        return self.eot

    @property
    def takes_regions(self) -> bool:
        return self.threat.norm != "l0"

    @property
    def starts_inside(self) -> bool:
        return self.clamp_start or not self.random_start

    def algorithm(
        self, oracle: Oracle, *, targets: int, first_step: int, room: int
    ) -> ProjectedGradient:
        kind = start_kinds(self.threat)[0] if self.random_start is True else self.random_start
        options: dict[str, Any] = {}
        if self.threat.norm == "l2":
            options["guard"] = self.guard
        if self.threat.norm == "l1":
            options["sparsity"] = self.effective_sparsity
        return ProjectedGradient(
            oracle,
            self.threat,
            steps=self.steps,
            restarts=self.restarts,
            begin=Begin(kind or None, self.clamp_start, self.seed),
            keep=self.keep,
            first_step=first_step,
            momentum_decay=self.decay,
            step_options=options,
        )


def _madry_step(attack: GradientAttack) -> float:
    return {"l1": 0.25, "l0": _L0_STEP}.get(attack.threat.norm, 2.5 / attack.steps)


# step sizes in units of eps
_DEFAULT_STEP: dict[str, Callable[[GradientAttack], float]] = {
    "rfgsm": lambda attack: 0.5,
    "mifgsm": lambda attack: 1 / attack.steps,
}
