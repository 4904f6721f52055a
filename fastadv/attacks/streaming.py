"""Attacks that count the samples they have seen, for loops over batches."""

import operator
from collections.abc import Sequence
from typing import Any, Protocol

import torch

from fastadv.attacks.call.result import AttackResult
from fastadv.attacks.call.targets import Target
from fastadv.execution import Auto, Execution
from fastadv.isolation import Model

_IDS = 2**63  # ids are int64


class Streamable(Protocol):
    """An attack or an ensemble: its randomness is keyed by `sample_ids`."""

    def __call__(self, *args: Any, **more: Any) -> torch.Tensor: ...

    def run(self, *args: Any, **more: Any) -> AttackResult: ...


class StreamingAttack:
    """`attack`, with the k-th sample of a call keyed by the id seen + k; then seen grows by B.

    So a call after another draws new noise, and the examples of a data set that is read in order
    are the same bits however it is cut into batches, as far as the model itself is
    batch-invariant: those of one call with sample_ids = 0, 1, ..., n - 1. A second pass goes on
    counting, with other noise; `seen = 0` begins again.

    seen: samples so far, an integer of at least 0, read and set at any time: what a checkpoint of
    the loop needs. It grows when a call has succeeded, so that one that raised is repeated with the
    same noise. sample_ids belongs to the attack alone, as in `evaluate`: ValueError here. One
    stream belongs to one loop: threads that share it would draw the same noise, a forked process
    counts on its own from where it began. Give each a start of its own: `seen=rank << 32`.

    Example: `stream = fastadv.pgd(fastadv.Linf(8 / 255)).streaming()`, then
    `for x, y in loader: x_adv = stream(model, x, y)`.
    """

    def __init__(self, attack: Streamable, *, seen: int = 0) -> None:
        is_none = isinstance(attack, type | StreamingAttack)
        if is_none or not callable(getattr(attack, "run", None)):
            raise TypeError(
                "attack must be an attack or an ensemble, whose streaming() makes a stream; got "
                f"{attack!r}"
            )
        self.attack = attack
        self.seen = seen

    @property
    def seen(self) -> int:
        return self._seen

    @seen.setter
    def seen(self, value: int) -> None:
        is_count = hasattr(value, "__index__") and not isinstance(value, bool)
        if not is_count or not 0 <= operator.index(value) < _IDS:
            raise ValueError(f"seen must be an integer of at least 0, below 2**63; got {value!r}")
        self._seen = operator.index(value)

    def __repr__(self) -> str:
        given = f"seen={self.seen}" if self.seen else ""
        return f"{self.attack!r}.streaming({given})"

    def __call__(
        self,
        model: Model,
        x: torch.Tensor,
        y: torch.Tensor | None = None,
        *,
        target: Target | None = None,
        sample_ids: None = None,
        x_init: torch.Tensor | None = None,
        extra: Sequence[torch.Tensor] = (),
        mask: torch.Tensor | None = None,
        execution: Execution | Auto | None = None,
    ) -> torch.Tensor:
        """The adversarial examples alone; arguments as of the attack, but for sample_ids."""
        more = self._arguments(
            x,
            sample_ids,
            target=target,
            x_init=x_init,
            extra=extra or None,
            mask=mask,
            execution=execution,
        )
        x_adv = self.attack(model, x, y, **more)
        self.seen += len(x)
        return x_adv

    def run(
        self,
        model: Model,
        x: torch.Tensor,
        y: torch.Tensor | None = None,
        *,
        target: Target | None = None,
        sample_ids: None = None,
        x_init: torch.Tensor | None = None,
        extra: Sequence[torch.Tensor] = (),
        mask: torch.Tensor | None = None,
        execution: Execution | Auto | None = None,
    ) -> AttackResult:
        """As `Attack.run`, but for sample_ids; an ensemble takes no target and no x_init."""
        more = self._arguments(
            x,
            sample_ids,
            target=target,
            x_init=x_init,
            extra=extra or None,
            mask=mask,
            execution=execution,
        )
        result = self.attack.run(model, x, y, **more)
        self.seen += len(x)
        return result

    def _arguments(self, x: object, sample_ids: object, **more: object) -> dict[str, Any]:
        if sample_ids is not None:
            raise ValueError(
                "a streaming attack counts samples itself and takes no sample_ids: give them, or "
                f"the data to evaluate, to the attack that it was made of, {self.attack!r}"
            )
        given = {name: value for name, value in more.items() if value is not None}
        if isinstance(x, torch.Tensor) and x.ndim:  # anything else the attack refuses
            if self.seen + len(x) > _IDS:
                raise ValueError(f"{len(x)} samples after seen={self.seen} have no id below 2**63")
            given["sample_ids"] = torch.arange(self.seen, self.seen + len(x), device=x.device)
        return given
