"""The attack object: its settings, their checks, and how it is called."""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields

import torch

from fastadv import losses
from fastadv.attacks.call import Call
from fastadv.attacks.projected_gradient import start_kinds
from fastadv.attacks.result import AttackResult
from fastadv.execution import Execution
from fastadv.isolation import Model
from fastadv.threat_model import ThreatModel, check_threat, pasteable_value, same_value

_KEEP = ("first_success", "last", "best")
_DEFAULT_SPARSITY = 0.05  # of the entries move in an L1 step


@dataclass(frozen=True, repr=False, eq=False)
class Attack:
    """A gradient attack with its settings; made by `fastadv.fgsm`, `pgd`, ... and callable.

    See the constructors for the settings. `constructor` names the one that made it, for `repr`,
    which can be pasted back.
    """

    constructor: str
    threat: ThreatModel
    steps: int
    step_size: float | torch.Tensor | None
    restarts: int = 1
    random_start: bool | str = False
    clamp_start: bool = True
    loss: str | losses.LossFunction = "ce"
    kappa: float = 0.0
    label_smoothing: float = 0.0
    eot: int = 1
    decay: float | None = None
    sparsity: float | None = None
    guard: float = 0.0
    keep: str = "first_success"
    seed: int = 0
    resolved_loss: losses.Loss = field(init=False)

    def __post_init__(self) -> None:
        check_threat(self.threat)
        for name in ("steps", "restarts", "eot"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1; got {value!r}")
        if self.keep not in _KEEP:
            raise ValueError(f"keep must be one of {_KEEP}; got {self.keep!r}")
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
        if not isinstance(self.seed, int):
            raise ValueError(f"seed must be an integer; got {self.seed!r}")
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
        resolved = losses.resolve(self.loss, kappa=self.kappa, label_smoothing=self.label_smoothing)
        object.__setattr__(self, "resolved_loss", resolved)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Attack) and all(
            same_value(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)
        )

    def __hash__(self) -> int:
        return hash((self.constructor, self.steps, self.seed, self.threat))

    @property
    def effective_step_size(self) -> float | torch.Tensor:
        """step_size, or the constructor's default in terms of eps."""
        if self.step_size is not None:
            return self.step_size
        eps = self.threat.eps
        if isinstance(eps, torch.Tensor) and eps.element_size() < 4:
            eps = eps.float()  # a step of a rounded radius would be rounded again
        return eps * _DEFAULT_STEP.get(self.constructor, _madry_step)(self)

    @property
    def effective_sparsity(self) -> float:
        return _DEFAULT_SPARSITY if self.sparsity is None else self.sparsity

    def __repr__(self) -> str:
        from fastadv.attacks import constructors

        signature = inspect.signature(getattr(constructors, self.constructor))
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
            self, model, x, y, target=target, sample_ids=sample_ids, x_init=x_init,
            execution=execution or Execution(),
        )  # fmt: skip
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
            self, model, x, y, target=target, sample_ids=sample_ids, x_init=x_init,
            execution=execution or Execution(),
        ).result()  # fmt: skip


def _madry_step(attack: Attack) -> float:
    return 0.25 if attack.threat.norm == "l1" else 2.5 / attack.steps


# step sizes in units of eps
_DEFAULT_STEP: dict[str, Callable[[Attack], float]] = {
    "rfgsm": lambda attack: 0.5,
    "mifgsm": lambda attack: 1 / attack.steps,
}
