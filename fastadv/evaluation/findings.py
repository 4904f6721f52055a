"""What an evaluation found: the numbers, and what follows from them."""

from dataclasses import dataclass

import torch

from fastadv import diagnostics
from fastadv.attacks.call.result import Cost, Stage
from fastadv.evaluation.examples import Example
from fastadv.evaluation.proportions import wilson_interval

DEFAULT_SEARCH = "the default"
UNKNOWN_BACKEND = "unknown"  # of reports that were saved before it was kept
UNKNOWN_EXECUTION = "unknown"  # of the same


@dataclass(frozen=True, eq=False, repr=False)
class Findings:
    """The fields of a `Report`, which says what they are."""

    model: str
    attack: str
    threat: str
    norm: str
    eps: float | None
    steps: int | None
    restarts: int | None
    seed: int | None
    clean_correct: torch.Tensor
    robust: torch.Tensor
    success: torch.Tensor
    step: torch.Tensor
    distance: torch.Tensor
    forwards: int
    backwards: int
    seconds: float
    warnings: dict[str, int]
    environment: dict[str, str]
    search: str = DEFAULT_SEARCH
    backend: str = UNKNOWN_BACKEND
    execution: str = UNKNOWN_EXECUTION
    cost: Cost = Cost()
    broken_by: torch.Tensor | None = None
    stages: tuple[Stage, ...] = ()
    objective: str | None = None
    clean_score: torch.Tensor | None = None
    score: torch.Tensor | None = None
    date: str = ""
    examples: tuple[Example, ...] = ()

    @property
    def n(self) -> int:
        return len(self.robust)

    @property
    def clean_accuracy(self) -> float:
        return int(self.clean_correct.sum()) / self.n

    @property
    def robust_accuracy(self) -> float:
        return int(self.robust.sum()) / self.n

    @property
    def mean_clean_score(self) -> float | None:
        """Of an objective with a score, over all samples."""
        return None if self.clean_score is None else float(self.clean_score.mean())

    @property
    def mean_attacked_score(self) -> float | None:
        return None if self.score is None else float(self.score.mean())

    @property
    def confidence_interval(self) -> tuple[float, float]:
        """95 % Wilson score interval of the robust accuracy: over samples, not over seeds."""
        return wilson_interval(int(self.robust.sum()), self.n)

    @property
    def accuracies(self) -> tuple[float, ...]:
        """Robust accuracy after each attack of an ensemble."""
        left, found = int(self.clean_correct.sum()), []
        for stage in self.stages:
            left -= stage.broken
            found.append(left / self.n)
        return tuple(found)

    @property
    def explanations(self) -> dict[str, str]:
        """What the warnings mean, in words, for each code."""
        return {
            code: diagnostics.words(code, count, self.n, of_ensemble=bool(self.stages))
            for code, count in self.warnings.items()
        }
