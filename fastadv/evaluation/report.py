"""What an evaluation found, with everything that defines the number."""

import json
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from fastadv import diagnostics
from fastadv.attacks.call.result import Cost, Stage
from fastadv.evaluation import saved, tables
from fastadv.evaluation.page import Page
from fastadv.evaluation.proportions import percent, wilson_interval
from fastadv.files import write_atomically

DEFAULT_SEARCH = "the default"
UNKNOWN_BACKEND = "unknown"  # of reports that were saved before it was kept
UNKNOWN_EXECUTION = "unknown"  # of the same
_STAGE_COLUMNS = (
    "attack",
    "attacked",
    "broken",
    "robust accuracy after it",
    "time",
    "forwards",
    "backwards",
    "discarded",
)


@dataclass(frozen=True, eq=False, repr=False)
class Report:
    """Clean and robust accuracy of a model on n samples under one attack.

    A sample is robust if the model classifies it correctly and the attack has no success on it.
    clean_correct, robust, success (bool), step (int64, -1 if none) and distance (float64, in the
    threat model's norm) are (n,) CPU tensors in the order of the data. model: its class, number of
    parameters and the start of the SHA-256 of its structure and weights. eps, steps,
    restarts, seed: None where the attack has no such thing; eps also where each element has its
    own. forwards, backwards: samples times
    passes. seconds: attacking, without loading data. search: what of `Execution` the examples that
    were found depend on. execution: all of what is not as by default, to be pasted; of "auto" what
    was measured. backend: what ops ran with, "triton", "compiled", "cpu" or "reference"; where
    kernels have failed also the ops whose references ran in their place. cost: what the time went
    into, as in `AttackResult`. warnings: samples for each code of `AttackWarning`. Of an ensemble:
    stages,
    what each of its attacks did, and broken_by, the index of the one that broke a sample, -1 if
    none did, -2 if the model got it wrong as it was. Of an attack with an `Objective`: its repr,
    and, if it has a score, clean_score and score, (n,) float64: of the samples as they are and of
    what the attack returned for them, which is the sample where it was a success as it was. Its
    success decides what is correct: clean accuracy is the share of samples that are none as they
    are.
    """

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

    def summary(self) -> dict[str, Any]:
        """All but the per-sample results, in plain Python values."""
        low, high = self.confidence_interval
        shown = {
            "n": self.n,
            "clean_accuracy": self.clean_accuracy,
            "robust_accuracy": self.robust_accuracy,
            "robust_accuracy_95": [low, high],
            "mean_clean_score": saved.written(self.mean_clean_score),
            "mean_attacked_score": saved.written(self.mean_attacked_score),
        }
        for field in fields(self):
            if field.name != "stages" and field.name not in saved.COLUMNS:
                shown[field.name] = getattr(self, field.name)
        shown["cost"] = {**self.cost._asdict(), "share_of_limit": self.cost.share_of_limit}
        shown["explanations"] = self.explanations
        shown["stages"] = [
            {**stage._asdict(), "robust_accuracy": accuracy}
            for stage, accuracy in zip(self.stages, self.accuracies, strict=True)
        ]
        return shown

    def to_json(self) -> str:
        """The summary and the per-sample results, as strict JSON."""
        samples = {
            name: saved.values_of(name, value)
            for name, value in vars(self).items()
            if isinstance(value, torch.Tensor)
        }
        return json.dumps({**self.summary(), "samples": samples}, allow_nan=False, indent=None)

    def to_markdown(self) -> str:
        """The headline, what each attack of an ensemble did, and a table of what defines it."""
        return tables.markdown(
            headline=f"**{percent(self.robust_accuracy)} robust accuracy**",
            facts=self._facts(),
            columns=_STAGE_COLUMNS,
            rows=self._stage_rows(),
            notes=list(self.explanations.values()),
        )

    def to_html(self) -> str:
        """The same as one file without external resources, for light and dark screens."""
        return self._page().html()

    def _repr_html_(self) -> str:
        """For notebooks: the same, without the rules of style of a page of its own."""
        return self._page().fragment()

    def _page(self) -> Page:
        return Page(
            title=f"{percent(self.robust_accuracy)} robust accuracy",
            lead=f"{percent(self.clean_accuracy)} clean, {self.n:,} samples, {self.threat}",
            facts=self._facts(),
            columns=_STAGE_COLUMNS,
            rows=self._stage_rows(),
            shares=self.accuracies,
            notes=list(self.explanations.values()),
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a .json, .md or .html file, by suffix, atomically."""
        path = Path(path)
        writers = {".json": self.to_json, ".md": self.to_markdown, ".html": self.to_html}
        if path.suffix not in writers:
            raise ValueError(f"path must end in .json, .md or .html; got {path}")
        write_atomically(path, writers[path.suffix]().encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Report":
        """The report that `save` wrote to a .json file, equal to the one that was saved.

        Nothing in the file is executed. Raises ValueError for anything else, as a .html report,
        which holds no samples, or a curve. Example: `fastadv.Report.load("report.json").robust`.
        """
        return cls(**saved.read(Path(path), cls))

    def __eq__(self, other: object) -> bool:
        return type(other) is Report and all(
            saved.is_same(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)
        )

    def __hash__(self) -> int:
        return hash((self.model, self.attack, self.n))

    def __repr__(self) -> str:
        broken = int((self.clean_correct & self.success).sum())
        return (
            f"<Report: {percent(self.robust_accuracy)} of {self.n:,} samples robust, "
            f"{percent(self.clean_accuracy)} clean, {broken:,} broken; eps={self.eps}\n"
            f" {tables.shortened(self.attack)}>"
        )

    def __str__(self) -> str:
        stages = "".join(
            f"after {stage.name:9} {percent(accuracy)}\n"
            for stage, accuracy in zip(self.stages, self.accuracies, strict=True)
        )
        score = "" if self.score is None else f"mean score      {self._score_text()}\n"
        search = "" if self.search == DEFAULT_SEARCH else f"search: {self.search}\n"
        return (
            f"{self.model}\n{self.attack}\n{search}"
            f"clean accuracy  {percent(self.clean_accuracy)}\n{stages}"
            f"robust accuracy {self._robust_text()}\n{score}"
            f"{self.n:,} samples, {self.seconds:.2f} s{self._cost_text()}, "
            f"warnings: {self._warnings_text()}{self._backend_text()}"
        )

    def _backend_text(self) -> str:
        """Where it is more than a word."""
        return f"\nbackend: {self.backend}" if ", " in self.backend else ""

    def _facts(self) -> dict[str, str]:
        judged = {"objective": f"`{self.objective}`"} if self.objective else {}
        score = {"mean score": self._score_text()} if self.score is not None else {}
        dashed = [tables.or_dash(value) for value in (self.steps, self.restarts, self.seed)]
        return {
            "model": self.model,
            "attack": f"`{self.attack}`",
            **judged,
            "threat model": f"`{self.threat}`",
            "steps, restarts, seed": ", ".join(dashed),
            "samples": f"{self.n:,}",
            "clean accuracy": percent(self.clean_accuracy),
            "robust accuracy": self._robust_text(),
            **score,
            "passes": f"{self.forwards:,} forward, {self.backwards:,} backward (samples)",
            "search": self.search,
            "execution": f"`{self.execution}`",
            "time": f"{self.seconds:.2f} s{self._cost_text()}",
            "warnings": self._warnings_text(),
            **self.environment,
        }

    def _stage_rows(self) -> list[list[str]]:
        return [
            [
                stage.name,
                f"{stage.attacked:,}",
                f"{stage.broken:,}",
                percent(accuracy),
                f"{stage.seconds:.2f} s",
                f"{stage.forwards:,}",
                f"{stage.backwards:,}",
                f"{stage.discarded:,}",
            ]
            for stage, accuracy in zip(self.stages, self.accuracies, strict=True)
        ]

    def _robust_text(self) -> str:
        low, high = self.confidence_interval
        return (
            f"{percent(self.robust_accuracy)} (95 % interval {100 * low:.1f} to {100 * high:.1f})"
        )

    def _score_text(self) -> str:
        return f"{self.mean_clean_score:.4g} clean, {self.mean_attacked_score:.4g} attacked"

    def _cost_text(self) -> str:
        """Where the time went, as far as it was measured."""
        cost, words = self.cost, []
        if cost.model_seconds:
            words.append(f"model {cost.model_seconds:.2f} s, beside it {cost.attack_seconds:.2f} s")
        if cost.share_of_limit:
            words.append(f"{percent(cost.share_of_limit)} of the limit of bare passes")
        if cost.denied:
            words.append(f"{cost.denied:,} successes denied by the model")
        if cost.final_attacked:
            words.append(
                f"final pass over {cost.final_attacked:,} samples broke {cost.final_broken:,} with "
                f"{cost.final_passes:,} passes in {cost.final_seconds:.2f} s"
            )
        return f" ({'; '.join(words)})" if words else ""

    def _warnings_text(self) -> str:
        found = [f"{code} ({count:,} samples)" for code, count in self.warnings.items()]
        return ", ".join(found) or "none"
