"""What every attack object is: settings, and how it is called."""

import inspect
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import torch

from fastadv.attacks.automatic import resolved
from fastadv.attacks.call.call import Call
from fastadv.attacks.call.result import AttackResult
from fastadv.attacks.call.settings import Settings
from fastadv.attacks.call.targets import Target
from fastadv.attacks.streaming import StreamingAttack
from fastadv.called_here import answered
from fastadv.execution import Auto, Execution
from fastadv.isolation import Model
from fastadv.values import pasteable_value, same_settings, same_value

Constructor = TypeVar("Constructor", bound="Callable[..., Attack]")
_NORMS = ("linf", "l2", "l1")
_CONSTRUCTORS: dict[str, "Callable[..., Attack]"] = {}


class Attack(Settings, Protocol):
    """A frozen dataclass of settings, made by `fastadv.pgd`, `fastadv.apgd_ce`, ... and callable.

    See the constructors for the settings. `constructor` names the one that made it, for `repr`,
    which can be pasted back.
    """

    @property
    def takes_l0(self) -> bool:
        return "l0" in norms_of(self.constructor)

    def __eq__(self, other: object) -> bool:
        return same_settings(self, other)

    def __hash__(self) -> int:
        return hash((self.constructor, self.steps, self.seed, self.threat))

    def __repr__(self) -> str:
        signature = inspect.signature(_CONSTRUCTORS[self.constructor])
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
        target: Target | None = None,
        sample_ids: torch.Tensor | None = None,
        x_init: torch.Tensor | None = None,
        extra: Sequence[torch.Tensor] = (),
        mask: torch.Tensor | None = None,
        execution: Execution | Auto | None = None,
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
            extra=extra,
            mask=mask,
            execution=resolved(execution, [self], model, x, extra),
        )
        return call.last_iterates() if self.keep == "last" else call.result().x_adv

    def run(
        self,
        model: Model,
        x: torch.Tensor,
        y: torch.Tensor | None = None,
        *,
        target: Target | None = None,
        sample_ids: torch.Tensor | None = None,
        x_init: torch.Tensor | None = None,
        extra: Sequence[torch.Tensor] = (),
        mask: torch.Tensor | None = None,
        execution: Execution | Auto | None = None,
    ) -> AttackResult:
        """Attack `model` at x and verify every success on the user's own model.

        model: callable from (B, ...) in the threat model's bounds to (B, C) logits. x: (B, ...),
        any float dtype and memory format. y: (B,) labels, None for the model's own predictions.
        target: (B,) classes to reach, or "least_likely", "second_best", "random". sample_ids: (B,)
        integers that key the randomness: the same id, the same bits, whatever the batch. None is
        0..B-1, by position: give data-set indices, or count them by `streaming()`, to make the
        examples of a data set independent of its batches. x_init: the start iterates instead of
        random ones. extra: (B, ...) tensors that the model takes beside x, model(x, *extra), and
        that go with their samples wherever these go. mask: bool, what broadcasts to x, (1, C, H, W)
        or (H, W) say: outside of it x_adv is x, random starts included, and norms are those of what
        is inside. execution: how to run, or "auto" for what `fastadv.tune` finds, in five seconds
        or less and once for a model and a shape; the result's `execution` says what that was. With
        a `fastadv.Objective` as loss the model may return a tensor of any shape (B, ...), and y is
        what it judges by. The model, its gradients, the random state and x are left
        as they were. Raises ValueError or TypeError for inputs that cannot be attacked; emits
        `AttackWarning` for what weakens the attack.

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
            extra=extra,
            mask=mask,
            execution=resolved(execution, [self], model, x, extra),
        ).result()

    def streaming(self, *, seen: int = 0) -> StreamingAttack:
        """This attack, counting the samples it has seen: every call draws new noise, and the
        examples of a data set do not depend on how it is cut into batches.

        Sample k of a call has the id seen + k; see `StreamingAttack`, whose `seen` can be read and
        set. Raises ValueError for a negative seen.
        Example: `stream = fastadv.pgd(fastadv.Linf(8 / 255)).streaming()`, then
        `for x, y in loader: x_adv = stream(model, x, y)`.
        """
        return StreamingAttack(self, seen=seen)


def constructor(function: Constructor) -> Constructor:
    """Decorates a function that makes attacks: `repr` writes a call of it, without its defaults,
    and what other libraries call a setting is answered by its name here."""
    made = answered(function)
    _CONSTRUCTORS[function.__name__] = made
    return made


def in_norms(*norms: str) -> "Callable[[Constructor], Constructor]":
    """Decorates a constructor of attacks for threat models of these norms alone."""

    def decorate(function: Constructor) -> Constructor:
        function.norms = norms  # type: ignore[attr-defined]
        return function

    return decorate


def norms_of(name: str) -> tuple[str, ...]:
    """The norms of the threat models that an attack takes; name: its constructor's."""
    return getattr(_CONSTRUCTORS[name], "norms", _NORMS)


def constructors() -> "dict[str, Callable[..., Attack]]":
    """Every function that makes attacks, by its name."""
    return dict(sorted(_CONSTRUCTORS.items()))
