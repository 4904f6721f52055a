"""Signs that a model masks its gradients or changes its mind, and so of a weak evaluation."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.overrides import TorchFunctionMode

from fastadv import diagnostics, memory, outputs
from fastadv.attacks.call.result import Stage
from fastadv.isolation import Model, isolated
from fastadv.ops import doubles

_PASSES = 5  # as many answers to the same question must agree
_SPREAD = 1e-4  # of logits scaled to length 1: what batching and rounding may explain
_SQUARE_GAIN = 0.002  # of the accuracy: more than Square may find behind the gradient attacks
_SQUARE_LED = 0.01  # where gradients are honest, 0 or 1 of 200 samples fell from where it ended


def examine(
    model: Model,
    x: torch.Tensor,
    extra: Sequence[torch.Tensor] = (),
    *,
    seed: int,
    expects_random: bool,
) -> None:
    """Warn if the model's answers differ from call to call, or it differentiates inside.

    These are the checks of AutoAttack's authors, without their trace function, which takes the
    place of a debugger's.
    """
    with isolated(model, device=x.device, seed=seed):
        with _Watch() as watch:
            answers = [_answers(model, x, extra)]
        diagnostics.warn("dynamic", len(x) if watch.differentiated else 0, len(x))
        if expects_random:
            return
        answers += [_answers(model, x, extra) for _ in range(_PASSES - 1)]
    units = [torch.nn.functional.normalize(doubles.doubled(z), dim=1) for z in answers]
    differs = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for z, unit in zip(answers[1:], units[1:], strict=True):
        differs |= doubles.returned((unit - units[0]).norm(dim=1) > _SPREAD, x)
        differs |= z.argmax(1) != answers[0].argmax(1)
    diagnostics.warn("randomised", int(differs.sum()), len(x))


def _answers(model: Model, x: torch.Tensor, extra: Sequence[torch.Tensor]) -> torch.Tensor:
    def answer(part: torch.Tensor, *more: torch.Tensor) -> torch.Tensor:
        return outputs.logits_in(model(part.clone(), *more), part)

    return memory.in_parts(answer, x, *extra, rows=max(1, len(x)))


class Gains(NamedTuple):
    """What Square gained on the gradient attacks before it, in samples. broken: by itself.
    in_all: those, and what APGD broke from where it had come closer than they."""

    broken: int = 0
    in_all: int = 0

    def plus(self, more: "Gains") -> "Gains":
        return Gains(self.broken + more.broken, self.in_all + more.in_all)


def gains_of_square(stages: Sequence[Stage], reserved: int) -> Gains:
    """Of the stages of an ensemble, of which the last `reserved` are for doubtful samples: the
    first of them for those alone that Square came closer to breaking."""
    broken = sum(stage.broken for stage in stages[1:] if stage.name == "SQUARE")
    from_there = stages[len(stages) - reserved].broken if reserved else 0
    return Gains(broken, broken + from_there)


def warn_of_square(gains: Gains, total: int) -> None:
    """Warn if Square broke more than 0.2 % of all samples behind the gradient attacks, or with APGD
    from where it ended more than 1 %."""
    gained = gains.broken > _SQUARE_GAIN * total or gains.in_all > _SQUARE_LED * total
    diagnostics.warn("square_gains", gains.in_all if gained else 0, total)


class _Watch(TorchFunctionMode):
    """Sees whether a gradient is taken: by torch.autograd.grad or Tensor.backward."""

    differentiated = False

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (torch.autograd.grad, torch.Tensor.backward, torch.autograd.backward):
            self.differentiated = True
        return func(*args, **(kwargs or {}))
