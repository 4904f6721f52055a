"""What every attack object is: settings, how it is called, and what a call asks of it."""

import inspect
from dataclasses import fields
from typing import Any, Protocol

import torch

from fastadv import losses
from fastadv.attacks.call.call import Call
from fastadv.attacks.call.result import AttackResult
from fastadv.engine.algorithm import SlotAlgorithm
from fastadv.execution import Execution
from fastadv.isolation import Model
from fastadv.oracle.gradient import Oracle
from fastadv.threat_model import ThreatModel, pasteable_value, same_value


class Attack(Protocol):
    """A frozen dataclass of settings, made by `fastadv.pgd`, `fastadv.apgd_ce`, ... and callable.

    See the constructors for the settings. `constructor` names the one that made it, for `repr`,
    which can be pasted back. The rest is what a call asks of it.
    """

    constructor: str
    threat: ThreatModel
    steps: int
    restarts: int
    keep: str
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
    def attacks_wrong(self) -> bool:
        """Whether samples that the model gets wrong are attacked all the same."""
        return self.keep == "best"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and all(
            same_value(getattr(self, f.name), getattr(other, f.name))
            for f in fields(self)  # type: ignore[arg-type]
        )

    def __hash__(self) -> int:
        return hash((self.constructor, self.steps, self.seed, self.threat))

    def __repr__(self) -> str:
        from fastadv import attacks

        signature = inspect.signature(getattr(attacks, self.constructor))
        given = [repr(self.threat)]
        for name, parameter in signature.parameters.items():
            value = getattr(self, name)
            if name != "threat" and not same_value(value, parameter.default):
                shown = getattr(value, "__qualname__", None) or pasteable_value(value)
                given.append(f"{name}={shown}")
        return f"fastadv.{self.constructor}({', '.join(given)})"

    def __call__(
        self,
        model: Model,
        x: torch.Tensor,
        y: torch.Tensor | None = None,
        *,
        target: torch.Tensor | str | None = None,
        sample_ids: torch.Tensor | None = None,
        x_init: torch.Tensor | None = None,
        execution: Execution | None = None,
    ) -> torch.Tensor:
        """The adversarial examples alone; arguments as in `run`.

        With keep="last" exactly `steps` forwards and backwards are made: nothing is verified.
        """
        call = Call(
            self,
            model,
            x,
            y,
            target=target,
            sample_ids=sample_ids,
            x_init=x_init,
            execution=execution or Execution(),
        )
        return call.last_iterates() if self.keep == "last" else call.result().x_adv

    def run(
        self,
        model: Model,
        x: torch.Tensor,
        y: torch.Tensor | None = None,
        *,
        target: torch.Tensor | str | None = None,
        sample_ids: torch.Tensor | None = None,
        x_init: torch.Tensor | None = None,
        execution: Execution | None = None,
    ) -> AttackResult:
        """Attack `model` at x and verify every success on the user's own model.

        model: callable from (B, ...) in the threat model's bounds to (B, C) logits. x: (B, ...),
        any float dtype and memory format. y: (B,) labels, None for the model's own predictions.
        target: (B,) classes to reach, or "least_likely", "second_best", "random". sample_ids: (B,)
        integers that key the randomness, 0..B-1 if None: give data-set indices to make results
        independent of batching. x_init: the start iterates instead of random ones. The model, its
        gradients, the random state and x are left as they were. Raises ValueError or TypeError for
        inputs that cannot be attacked; emits `AttackWarning` for what weakens the attack.

        Example: `fastadv.pgd(fastadv.Linf(8 / 255)).run(model, x, y).success.float().mean()`.
        """
        return Call(
            self,
            model,
            x,
            y,
            target=target,
            sample_ids=sample_ids,
            x_init=x_init,
            execution=execution or Execution(),
        ).result()


def check_counts(attack: Any, *names: str) -> None:
    """Raises ValueError unless each named setting is an integer of at least 1."""
    for name in names:
        value = getattr(attack, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be an integer of at least 1; got {value!r}")


def check_choices(attack: Any, keep: tuple[str, ...]) -> None:
    """Raises ValueError for a `keep` that the attack does not have, or a seed that is none."""
    if attack.keep not in keep:
        raise ValueError(f"keep must be one of {keep}; got {attack.keep!r}")
    if not isinstance(attack.seed, int):
        raise ValueError(f"seed must be an integer; got {attack.seed!r}")
