"""What is asked of a model: the label of a sample, or what an objective wants; and its answers."""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from fastadv import memory, outputs
from fastadv.evaluation.checkpoint import without_addresses
from fastadv.evaluation.clean import device_of, logits_of
from fastadv.evaluation.samples import Rows
from fastadv.isolation import Model, isolated
from fastadv.objective import Objective

_TIE = 2.0**-7  # of the largest logit: one bfloat16 rounding may turn it at another batch size
_SUCCESS, _TRACE, _SCORE, _CLOSE = range(4)  # columns of what is kept of an output
_NUDGES = 8  # directions in which an output is moved to see whether its verdict is a near tie


class Answers(NamedTuple):
    """What the model says of n clean samples.

    prediction: (n,) as an `AttackResult` has it. score: (n,) of an objective that has one. traces:
    (n, K) what a model that draws random numbers gives otherwise. is_close: (n,) bool, where
    rounding may turn the prediction; None unless asked for.
    """

    prediction: torch.Tensor
    score: torch.Tensor | None
    traces: torch.Tensor
    is_close: torch.Tensor | None


@dataclass(frozen=True)
class Question:
    """objective: of the attack; None: its samples are asked for their labels."""

    objective: Objective | None

    @classmethod
    def of(cls, attack: object) -> "Question":
        """What `attack` asks. Raises ValueError where nobody could answer it."""
        objective = objective_of(attack)
        if objective is not None and objective.success is None:
            raise ValueError(
                f"evaluate counts the samples that an attack has no success on, and {objective!r} "
                "does not say what a success is: give it success=, a function of (output, y) to "
                "(B,) bool"
            )
        return cls(objective)

    @property
    def has_score(self) -> bool:
        return self.objective is not None and self.objective.score is not None

    @property
    def described(self) -> str | None:
        """The objective with its parameters, as a report names it."""
        return None if self.objective is None else without_addresses(repr(self.objective))

    def are_right(self, prediction: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """(n,) bool: the label, or no success of the objective."""
        return prediction == (y if self.objective is None else 0)

    def answers(
        self, model: Model, rows: Rows, *, batch_size: int, seed: int = 0, closely: bool = False
    ) -> Answers:
        """What `model` answers, in eval mode, `batch_size` samples at a time."""
        if self.objective is None:
            logits = logits_of(model, rows.x, *rows.extra, batch_size=batch_size, seed=seed)
            is_close = _are_near_ties(logits) if closely else None
            return Answers(logits.argmax(1), None, logits, is_close)
        table = _judged(self.objective, model, rows, batch_size, seed, closely)
        score = table[:, _SCORE] if self.has_score else None
        is_close = table[:, _CLOSE] > 0 if closely else None
        return Answers(table[:, _SUCCESS].long(), score, table[:, [_TRACE]], is_close)


def objective_of(attack: object) -> Objective | None:
    return getattr(getattr(attack, "resolved_loss", None), "objective", None)


def _judged(
    objective: Objective, model: Model, rows: Rows, batch_size: int, seed: int, closely: bool
) -> torch.Tensor:
    """(n, 4) float64 on the CPU; not the outputs, which may be images."""
    device = device_of(model) or rows.x.device

    def answer(x: torch.Tensor, y: torch.Tensor, *extra: torch.Tensor) -> torch.Tensor:
        x, y = x.to(device), y.to(device)
        output = outputs.logits_in(model(x, *(column.to(device) for column in extra)), x)
        objective.check_classes(output, objective.largest_class(y))
        success = objective.verdict(output, y).argmax(1)
        score = objective.scores(output, y)
        none = torch.zeros_like(success)
        columns = [
            success,
            output.reshape(len(output), -1).float().sum(1),
            none if score is None else score,
            _are_close(objective, output, y, success) if closely else none,
        ]
        return torch.stack([column.cpu().double() for column in columns], 1)

    with isolated(model, device=device, seed=seed):
        return memory.in_parts(answer, rows.x, rows.y, *rows.extra, rows=batch_size)


def _are_near_ties(logits: torch.Tensor) -> torch.Tensor:
    top = logits.topk(min(2, logits.shape[1]), dim=1).values
    return top[:, 0] - top[:, -1] <= _TIE * logits.abs().amax(1)


def _are_close(
    objective: Objective, output: torch.Tensor, y: torch.Tensor, success: torch.Tensor
) -> torch.Tensor:
    """Where the verdict turns as all numbers of the output move up or down by a rounding of the
    largest one of the batch: a single logit near 0 is small, but not its terms."""
    is_close = torch.zeros_like(success, dtype=torch.bool)
    if not output.is_floating_point() or not output.numel():
        return is_close
    reach = _TIE * output.abs().amax()
    generator = torch.Generator().manual_seed(0)
    for _ in range(_NUDGES):
        ups = torch.randint(2, output.shape, generator=generator).to(output.device)
        nudged = torch.where(ups > 0, output + reach, output - reach)
        is_close |= objective.verdict(nudged, y).argmax(1) != success
    return is_close
