"""What an evaluation found, with everything that defines the number."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fastadv import plots
from fastadv.evaluation import examples, saved, tables, wording
from fastadv.evaluation.findings import DEFAULT_SEARCH, Findings
from fastadv.evaluation.page import Bar, Page
from fastadv.evaluation.proportions import percent, wilson_interval
from fastadv.files import write_atomically
from fastadv.plots.files import check_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False, repr=False)
class Report(Findings):
    """Clean and robust accuracy of a model on n samples under one attack.

    A sample is robust if the model classifies it correctly and the attack has no success on it.
    clean_correct, robust, success (bool), step (int64, -1 if none) and distance (float64, in the
    threat model's norm) are (n,) CPU tensors in the order of the data. model: its class, number of
    parameters and the start of the SHA-256 of its structure and weights. eps, steps, restarts,
    seed: None where the attack has no such thing; eps also where each element has its own.
    forwards, backwards: samples times passes. seconds: attacking, without loading data. search:
    what of `Execution` the examples that were found depend on. execution: all of what is not as by
    default, to be pasted; of "auto" what was measured. backend: what ops ran with, "triton",
    "compiled", "cpu" or "reference"; where kernels have failed also the ops whose references ran in
    their place. cost: what the time went into, as in `AttackResult`. warnings: samples for each
    code of `AttackWarning`. Of an ensemble: stages, what each of its attacks did, and broken_by,
    the index of the one that broke a sample, -1 if none did, -2 if the model got it wrong as it
    was. Of an attack with an `Objective`: its repr, and, if it has a score, clean_score and score,
    (n,) float64: of the samples as they are and of what the attack returned for them, which is the
    sample where it was a success as it was. Its success decides what is correct: clean accuracy is
    the share of samples that are none as they are. date: when the evaluation was begun, as
    2026-12-01 04:10 UTC, "" in reports that were saved before it was kept. examples: of images,
    unless an `Objective` judges them, the first eight that were broken, as
    `fastadv.evaluation.examples.Example`; they are shown in HTML. dataclasses.replace(report,
    examples=()) is a report without them.
    """

    def summary(self) -> dict[str, Any]:
        """All but the per-sample results and the examples, in plain Python values."""
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
            if field.name not in ("stages", "examples", *saved.COLUMNS):
                shown[field.name] = getattr(self, field.name)
        shown["cost"] = {**self.cost._asdict(), "share_of_limit": self.cost.share_of_limit}
        shown["explanations"] = self.explanations
        shown["stages"] = [
            {**stage._asdict(), "robust_accuracy": accuracy}
            for stage, accuracy in zip(self.stages, self.accuracies, strict=True)
        ]
        return shown

    def to_json(self) -> str:
        """The summary, the per-sample results and the examples, as strict JSON."""
        samples = {
            name: saved.values_of(name, value)
            for name, value in vars(self).items()
            if isinstance(value, torch.Tensor)
        }
        everything = {**self.summary(), "samples": samples}
        everything["examples"] = examples.written(self.examples)
        return json.dumps(everything, allow_nan=False, indent=None)

    def to_markdown(self) -> str:
        """The headline, what each attack of an ensemble did, and a table of what defines it."""
        return tables.markdown(
            headline=f"**{percent(self.robust_accuracy)} robust accuracy**",
            facts=wording.facts(self),
            columns=wording.STAGE_COLUMNS,
            rows=wording.stage_rows(self),
            notes=list(self.explanations.values()),
        )

    def to_html(self) -> str:
        """The same as one file without external resources, for light and dark screens, wide and
        narrow."""
        return self._page().html()

    def _repr_html_(self) -> str:
        """For notebooks: the same, without the rules of style of a page of its own."""
        return self._page().fragment()

    def _page(self) -> Page:
        clean, robust = self.clean_accuracy, self.robust_accuracy
        clean_interval = wilson_interval(int(self.clean_correct.sum()), self.n)
        return Page(
            title=f"{percent(robust)} robust accuracy",
            lead=wording.lead(self),
            bars=[
                Bar("without an attack (clean)", clean, percent(clean), clean_interval),
                Bar("under attack (robust)", robust, percent(robust), self.confidence_interval),
            ],
            facts=wording.facts(self),
            columns=wording.STAGE_COLUMNS,
            rows=wording.stage_rows(self),
            shares=self.accuracies,
            notes=list(self.explanations.values()),
            words=wording.words(self),
            date=self.date,
            examples=self.examples,
            of_examples=wording.examples(self),
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a .json, .md or .html file, by suffix, atomically."""
        path = Path(path)
        writers: dict[str, Callable[[], str]] = {
            ".json": self.to_json,
            ".md": self.to_markdown,
            ".html": self.to_html,
        }
        if path.suffix not in writers:
            raise ValueError(f"path must end in .json, .md or .html; got {path}")
        write_atomically(path, writers[path.suffix]().encode())

    def plot(
        self, path: str | os.PathLike[str] | None = None, *, title: str | None = None
    ) -> "Figure":
        """Bars of clean accuracy (eps = 0) and of what is left after the attack, or after each
        attack of an ensemble, on one axis from 0 to 100 %, with 95 % intervals over samples.

        path: a .png, .svg or .pdf file to write it to. Needs matplotlib; raises ModuleNotFoundError
        without it, ValueError for other files. Example: `report.plot("report.pdf")`.
        """
        check_path(path)
        ball = wording.ball(self.norm, self.eps)
        accuracies = {"clean": self.clean_accuracy}
        for stage, accuracy in zip(self.stages, self.accuracies, strict=True):
            accuracies[f"after {stage.name}"] = accuracy
        if not self.stages:
            accuracies["under attack"] = self.robust_accuracy
        counts = {name: round(value * self.n) for name, value in accuracies.items()}
        figure = plots.accuracy_bars(
            accuracies,
            intervals={name: wilson_interval(count, self.n) for name, count in counts.items()},
            title=title or f"{ball + ', ' if ball else ''}n = {self.n:,}",
        )
        if path is not None:
            plots.save(figure, path)
        return figure

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Report":
        """The report that `save` wrote to a .json file, equal to the one that was saved.

        Nothing in the file is executed. Raises ValueError for anything else, as a .html report,
        which holds no samples, or a curve. Example: `fastadv.Report.load("report.json").robust`.
        """
        return cls(**saved.read(Path(path), cls))

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and all(
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
        score = "" if self.score is None else f"mean score      {wording.scores(self)}\n"
        search = "" if self.search == DEFAULT_SEARCH else f"search: {self.search}\n"
        backend = f"\nbackend: {self.backend}" if ", " in self.backend else ""  # more than a word
        return (
            f"{self.model}\n{self.attack}\n{search}"
            f"clean accuracy  {percent(self.clean_accuracy)}\n{stages}"
            f"robust accuracy {wording.robust(self)}\n{score}"
            f"{self.n:,} samples, {self.seconds:.2f} s{wording.costs(self.cost)}, "
            f"warnings: {wording.warned(self.warnings)}{backend}"
        )
