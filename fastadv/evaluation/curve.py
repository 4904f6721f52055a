"""What was found at several radii, as a table, a page and a figure."""

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fastadv import plots
from fastadv.evaluation import saved_curve, tables, wording
from fastadv.evaluation.findings import UNKNOWN_EXECUTION
from fastadv.evaluation.page import Bar, Page
from fastadv.evaluation.proportions import percent, wilson_interval
from fastadv.files import write_atomically
from fastadv.plots.files import check_path
from fastadv.values import in_255ths, same_value

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = (
    "eps",
    "robust accuracy",
    "95 % interval",
    "samples attacked",
    "forward passes",
    "backward passes",
)
_NAME = "model"


@dataclass(frozen=True, eq=False, repr=False)
class Curve:
    """Robust accuracy of a model on n samples at the radii `eps`, ascending.

    clean_correct: (n,) bool. robust: (n, K) bool, for each radius; what is robust at one is robust
    at every smaller one. attack: its repr at the largest radius. attacked, forwards, backwards:
    (K,) how many samples each radius still had to attack, and samples times passes, here: where
    slots wait for work they count. warnings: samples for each code of `AttackWarning`, of all
    radii together, where a sample may count once for each. execution: how attacks ran. norm: of
    the attack. date: when it was begun. Both are "" of curves that were saved before they were
    kept.
    """

    model: str
    attack: str
    eps: tuple[float, ...]
    clean_correct: torch.Tensor
    robust: torch.Tensor
    attacked: tuple[int, ...]
    forwards: tuple[int, ...]
    backwards: tuple[int, ...]
    warnings: dict[str, int]
    environment: dict[str, str]
    execution: str = UNKNOWN_EXECUTION
    norm: str = ""
    date: str = ""

    @property
    def n(self) -> int:
        return len(self.robust)

    @property
    def clean_accuracy(self) -> float:
        return int(self.clean_correct.sum()) / self.n

    @property
    def robust_accuracy(self) -> tuple[float, ...]:
        return tuple(count / self.n for count in self.robust.sum(0).tolist())

    @property
    def clean_interval(self) -> tuple[float, float]:
        """95 % Wilson score interval of the clean accuracy."""
        return wilson_interval(int(self.clean_correct.sum()), self.n)

    @property
    def confidence_intervals(self) -> tuple[tuple[float, float], ...]:
        """95 % Wilson score intervals, each of its own radius, over samples."""
        return tuple(wilson_interval(count, self.n) for count in self.robust.sum(0).tolist())

    @property
    def relative_cost(self) -> float:
        """All passes over those of the radius that took most of them here.

        An evaluation of a smaller radius by itself attacks more samples, so this is an upper bound
        of the cost relative to the dearest single evaluation.
        """
        passes = [f + b for f, b in zip(self.forwards, self.backwards, strict=True)]
        return sum(passes) / max(passes)

    def to_json(self) -> str:
        """Everything, as strict JSON."""
        plain = {k: v for k, v in vars(self).items() if not isinstance(v, torch.Tensor)}
        derived = {
            "n": self.n,
            "clean_accuracy": self.clean_accuracy,
            "robust_accuracy": self.robust_accuracy,
            "robust_accuracy_95": self.confidence_intervals,
            "relative_cost": self.relative_cost,
        }
        samples = {"clean_correct": self.clean_correct.tolist(), "robust": self.robust.tolist()}
        return json.dumps({**plain, **derived, "samples": samples}, allow_nan=False)

    def to_markdown(self) -> str:
        """A table of the radii, and one of what defines them."""
        return tables.markdown(
            headline=f"**Robust accuracy at {_radii(len(self.eps))}**",
            facts=self._facts(),
            columns=_COLUMNS,
            rows=self._rows_from_clean(),
            notes=[],
        )

    def to_html(self) -> str:
        """The same as one file without external resources, for light and dark screens."""
        clean, rows = self.clean_accuracy, self._rows_from_clean()
        robust = self.robust_accuracy
        ball = f", in {wording.NORMS[self.norm]}" if self.norm in wording.NORMS else ""
        return Page(
            title=f"Robust accuracy at {_radii(len(self.eps))}",
            lead=f"Of {wording.counted(self.n, 'sample')} the model gets {percent(clean)} right as "
            f"they are, and {percent(robust[-1])} also under attack within "
            f"{in_255ths(self.eps[-1])}{ball}, the largest radius.",
            bars=[Bar("without an attack (clean)", clean, percent(clean), self.clean_interval)],
            facts=self._facts(),
            columns=_COLUMNS,
            rows=rows,
            shares=[clean, *robust][-len(rows) :],
            notes=[],
            words=wording.words(),
            bar=1,
            of_rows="Radius by radius",
            date=self.date,
        ).html()

    def plot(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        name: str = "",
        beside: Mapping[str, "Curve"] | None = None,
        title: str | None = None,
        mark: float | None = None,
    ) -> "Figure":
        """Accuracy against eps with 95 % intervals, from clean accuracy at eps = 0 on.

        path: a .png, .svg or .pdf file to write it to. name: of this model in the legend. beside:
        curves of other models by name, in the same norm. mark: a radius to point out. Needs
        matplotlib; raises ModuleNotFoundError without it, ValueError for other files and for curves
        of another norm. Example: `standard.plot("curve.pdf", name="standard", beside={"Fast-AT":
        fast})`.
        """
        check_path(path)
        curves = {name or (_NAME if beside else ""): self, **(beside or {})}
        if len({curve.norm for curve in curves.values()}) > 1:
            raise ValueError(f"curves of one norm go into one figure; got {_norms(curves)}")
        points = {name: curve._points() for name, curve in curves.items()}
        figure = plots.accuracy_against_eps(
            {name: [eps for eps, _, _ in found] for name, found in points.items()},
            {name: [share for _, share, _ in found] for name, found in points.items()},
            intervals={name: [span for _, _, span in found] for name, found in points.items()},
            title=title or f"{tables.shortened(wording.at_eps(self.attack))}, n = {self.n:,}",
            mark=mark,
            norm=wording.NORMS.get(self.norm, "eps"),
        )
        if path is not None:
            plots.save(figure, path)
        return figure

    def _points(self) -> list[tuple[float, float, tuple[float, float]]]:
        """(eps, accuracy, interval), from eps = 0 on."""
        clean = [] if self.eps[0] == 0 else [(0.0, self.clean_accuracy, self.clean_interval)]
        return clean + [
            *zip(self.eps, self.robust_accuracy, self.confidence_intervals, strict=True)
        ]

    def _facts(self) -> dict[str, str]:
        return {
            "model": self.model,
            "attack": wording.settings(self.attack),
            "other radii": ", ".join(map(in_255ths, self.eps[:-1])) or "none",
            "samples": f"{self.n:,}",
            "clean accuracy": percent(self.clean_accuracy),
            "passes": f"{self.relative_cost:.2f} times those of the costliest radius",
            "run settings": f"`{self.execution}`",
            "warnings": wording.warned(self.warnings),
            **({"begun": self.date} if self.date else {}),
            **self.environment,
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a .json, .md or .html file, by suffix, atomically."""
        path = Path(path)
        writers = {".json": self.to_json, ".md": self.to_markdown, ".html": self.to_html}
        if path.suffix not in writers:
            raise ValueError(f"path must end in .json, .md or .html; got {path}")
        write_atomically(path, writers[path.suffix]().encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Curve":
        """The curve that `save` wrote to a .json file; nothing in the file is executed.

        Raises ValueError for anything else, as a report. Example: `Curve.load("curve.json").eps`.
        """
        return cls(**saved_curve.read(Path(path), cls))

    def __eq__(self, other: object) -> bool:
        return type(other) is Curve and all(
            same_value(mine, getattr(other, name)) for name, mine in vars(self).items()
        )

    def __hash__(self) -> int:
        return hash((self.model, self.attack, self.n))

    def __repr__(self) -> str:
        shown = [
            f"{percent(accuracy)} at {in_255ths(eps, digits=4)}"
            for eps, accuracy in zip(self.eps, self.robust_accuracy, strict=True)
        ]
        if len(shown) > 4:
            shown = [*shown[:2], "...", shown[-1]]
        return (
            f"<Curve: robust {', '.join(shown)}; {percent(self.clean_accuracy)} of {self.n:,} "
            f"samples clean\n {tables.shortened(self.attack)}>"
        )

    def __str__(self) -> str:
        lines = [f"eps {row[0]:>10}  {row[1]:>8} robust  ({row[2]})" for row in self._rows()]
        clean = f"clean accuracy  {percent(self.clean_accuracy)}"
        passes = f"{self.relative_cost:.2f} times the passes of the costliest radius"
        return "\n".join([self.model, self.attack, clean, *lines, f"{self.n:,} samples, {passes}"])

    def _rows_from_clean(self) -> list[list[str]]:
        low, high = self.clean_interval
        row = ["0 (clean)", percent(self.clean_accuracy), f"{100 * low:.1f} to {100 * high:.1f}"]
        clean = [] if self.eps[0] == 0 else [[*row, "-", "-", "-"]]
        return clean + self._rows()

    def _rows(self) -> list[list[str]]:
        return [
            [
                in_255ths(eps),
                percent(accuracy),
                f"{100 * low:.1f} to {100 * high:.1f}",
                f"{attacked:,}",
                f"{forwards:,}",
                f"{backwards:,}",
            ]
            for eps, accuracy, (low, high), attacked, forwards, backwards in zip(
                self.eps,
                self.robust_accuracy,
                self.confidence_intervals,
                self.attacked,
                self.forwards,
                self.backwards,
                strict=True,
            )
        ]


def checked_radii(eps: object) -> list[float]:
    """Ascending; TypeError for what is no list, ValueError for what are no radii of a curve."""
    if isinstance(eps, str) or not isinstance(eps, Iterable):
        raise TypeError(f"eps must be a list of radii, as in eps=[2 / 255, 8 / 255]; got {eps!r}")
    radii = sorted(float(radius) for radius in eps)
    if math.inf in radii:
        raise ValueError(
            f"eps must be finite radii; got {list(eps)}: an infinite one is given alone, and its "
            "report of distances holds the accuracy at every radius"
        )
    if not radii or len(set(radii)) != len(radii) or not 0 <= radii[0] <= radii[-1]:
        raise ValueError(f"eps must be different radii >= 0, at least one; got {list(eps)}")
    return radii


def _radii(count: int) -> str:
    return "1 radius" if count == 1 else f"{count} radii"


def _norms(curves: Mapping[str, Curve]) -> str:
    return ", ".join(f"{name}: {curve.norm or 'unknown'}" for name, curve in curves.items())
