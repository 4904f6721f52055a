"""What a call asks of an attack's settings, and checks that they share."""

from typing import Any, Literal, Protocol

import torch

from fastadv import losses
from fastadv.elements import check_radius, has_elements, has_radius
from fastadv.engine.algorithm import SlotAlgorithm
from fastadv.oracle.gradient import Oracle
from fastadv.threat_model import ThreatModel, check_threat

Keep = Literal["first_success", "authors", "last", "best"]  # an attack takes some of these


class Settings(Protocol):
    """The settings of an attack and what follows from them; how it is called is not among them.

    constructor: the name of the function that made it, as in `fastadv.pgd`.
    """

    constructor: str
    threat: ThreatModel
    steps: int
    restarts: int
    keep: Keep
    seed: int

    @property
    def resolved_loss(self) -> losses.Loss:
        """What the search ascends."""
        ...

    @property
    def effective_step_size(self) -> float | torch.Tensor:
        """The first step's size, in input units."""
        ...

    def algorithm(
        self, oracle: Oracle, *, targets: int, first_step: int, room: int
    ) -> SlotAlgorithm:
        """The slot algorithm. targets: classes a sample that are aimed at in turn, 0: none.
        first_step: the first that may be a success. room: rows that a batch may have."""
        ...

    @property
    def passes(self) -> int:
        """Forward passes averaged a step (EOT)."""
        return 1

    @property
    def takes_gradients(self) -> bool:
        """Whether a step has a backward pass."""
        return True

    @property
    def reported_loss(self) -> losses.Loss:
        """The loss of a result."""
        return self.resolved_loss

    @property
    def most_targets(self) -> int:
        """How many of the likeliest wrong classes are aimed at in turn; 0: none."""
        return 0

    @property
    def starts_inside(self) -> bool:
        """Whether every start lies in the ball and in bounds, and may be returned."""
        return True

    @property
    def discards_outside(self) -> bool:
        """Whether an iterate outside the ball is replaced by x in the result."""
        return False

    @property
    def resolves_finely(self) -> bool:
        """Whether half precision is too coarse for the search itself, which then uses float32."""
        return False

    @property
    def takes_regions(self) -> bool:
        """Whether elements may be left out by a mask, or have radii and bounds of their own."""
        return False

    @property
    def needs_radius(self) -> bool:
        """Whether the threat model has to say how far samples may move."""
        return True

    @property
    def takes_l0(self) -> bool:
        """Whether it is defined where entries are counted."""
        return False

    @property
    def seeks_nearest(self) -> bool:
        """Whether the nearest adversarial example is what is wanted, and any distance a success:
        no radius says what is near enough."""
        return not has_radius(self.threat)

    @property
    def notes_nearest(self) -> bool:
        """Whether its slots note at which step the nearest point was found, as
        `fastadv.kernels.slots.NEAREST_STEP`: the number of points evaluated before it, each with a
        forward and a backward pass."""
        return False

    def backwards_a_step(self, classes: int) -> int:
        """Backward passes of a sample in a step, of a model with so many classes."""
        return 1

    @property
    def attacks_wrong(self) -> bool:
        """Whether samples that the model gets wrong are attacked all the same."""
        return self.keep == "best"


def check_counts(attack: Any, *names: str) -> None:
    """Raises ValueError unless each named setting is an integer of at least 1."""
    for name in names:
        value = getattr(attack, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be an integer of at least 1; got {value!r}")


def check_claims(attack: Settings, keep: tuple[str, ...]) -> None:
    """Raises ValueError where the attack is to stop at a success of an objective that has none;
    keep: what the attack takes."""
    objective = attack.resolved_loss.objective
    if objective is not None and objective.success is None and attack.keep not in ("last", "best"):
        others = " or ".join(repr(one) for one in ("last", "best") if one in keep)
        remedy = f", or use keep={others}" if others else ""
        raise ValueError(
            f"keep={attack.keep!r} needs to know what a success is, which {objective!r} does not "
            f"say: give it success={remedy}"
        )


def check_takes_regions(attack: Settings, what: str) -> None:
    """Raises ValueError where the attack takes no `what`."""
    if not attack.takes_regions:
        raise ValueError(
            f"{attack.constructor} in {attack.threat.norm.upper()} takes no {what}: use "
            "fastadv.pgd, bim or mifgsm, or apgd_ce with fastadv.Linf or fastadv.L2"
        )


def check_settings(attack: Any, *counts: str, keep: tuple[str, ...]) -> None:
    """What all attacks check: the threat model, the settings that are `counts`, `keep` and seed."""
    check_threat(attack.threat)
    if attack.threat.norm == "l0" and not attack.takes_l0:
        raise ValueError(
            f"{attack.constructor} is not defined in L0; got {attack.threat!r}: use fastadv.pgd"
        )
    if attack.needs_radius:
        check_radius(attack.threat, attack.constructor)
    if has_elements(attack.threat):
        check_takes_regions(attack, "radii and bounds of elements")
    check_counts(attack, *counts)
    if attack.keep not in keep:
        raise ValueError(f"keep must be one of {keep}; got {attack.keep!r}")
    if not isinstance(attack.seed, int):
        raise ValueError(f"seed must be an integer; got {attack.seed!r}")
