"""How far the nearest adversarial examples are, and the whole curve that follows from it."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fastadv import plots
from fastadv.evaluation import saved, tables, wording
from fastadv.evaluation.curve import Curve, checked_radii
from fastadv.evaluation.page import Bar, Page
from fastadv.evaluation.proportions import percent, wilson_interval
from fastadv.evaluation.report import Report
from fastadv.plots.files import check_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEVELS = (0.1, 0.25, 0.5, 0.75, 0.9)
_COLUMNS = ("of the samples right as they are", "broken within", "accuracy there", "95 % interval")
_RADII = 32  # of a curve that is not told its own, beside 0
_NAME = "model"


@dataclass(frozen=True, eq=False, repr=False)
class DistanceReport(Report):
    """A `Report` of an attack without a radius: how near its nearest adversarial examples are.

    distance: (n,) float64 in the threat model's norm: 0 for a sample that the model gets wrong as
    it is, inf where the attack found nothing. robust: where it found nothing at any distance. The
    distances hold the exact accuracy under this attack at every radius: a sample is broken at a
    radius if its distance is at most that. Example: `fastadv.evaluate(net, (x, y),
    fastadv.fab(fastadv.L2())).quantiles()`.
    """

    def quantiles(self, levels: Sequence[float] = LEVELS) -> tuple[float, ...]:
        """For each level in (0, 1] the smallest distance found within which at least that share of
        the samples is broken that the model gets right as they are; inf where so many never are,
        NaN where it gets none right. Raises ValueError for other levels."""
        if not all(0 < level <= 1 for level in levels):
            raise ValueError(f"levels must lie in (0, 1]; got {tuple(levels)}")
        ordered = self.distance[self.clean_correct].sort().values
        if len(ordered) == 0:
            return (math.nan,) * len(levels)
        # 0.1 * 30 is a little more than 3
        ranks = [math.ceil(level * len(ordered) - 1e-9) for level in levels]
        return tuple(float(ordered[rank - 1]) for rank in ranks)

    @property
    def median(self) -> float:
        """`quantiles` at a half."""
        return self.quantiles((0.5,))[0]

    def accuracy_at(self, eps: float) -> float:
        """The share of all samples that are right as they are and farther than eps from the nearest
        adversarial example found."""
        return self._farther(eps) / self.n

    def curve(self, eps: Sequence[float] | None = None) -> Curve:
        """The accuracy at the radii eps >= 0, as `fastadv.robustness_curve` returns it; None: from
        0 to the largest distance found, evenly. All passes are entered at the largest radius.

        Raises ValueError for radii that are not different, finite and >= 0. Example:
        `report.curve([0.5, 1.0]).save("curve.html")`.
        """
        radii = self._even_radii() if eps is None else checked_radii(eps)
        last = len(radii) - 1
        nearest = torch.where(self.clean_correct, self.distance, 0.0)
        return Curve(
            model=self.model,
            attack=self.attack,
            eps=tuple(radii),
            clean_correct=self.clean_correct,
            robust=nearest[:, None] > torch.tensor(radii, dtype=torch.float64),
            attacked=(0,) * last + (int(self.clean_correct.sum()),),
            forwards=(0,) * last + (self.forwards,),
            backwards=(0,) * last + (self.backwards,),
            warnings=self.warnings,
            environment=self.environment,
            execution=self.execution,
            norm=self.norm,
            date=self.date,
        )

    def plot(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        title: str | None = None,
        name: str = "",
        beside: Mapping[str, "DistanceReport"] | None = None,
    ) -> "Figure":
        """Accuracy against eps, exact: a step down at every distance, with 95 % intervals over
        samples at each radius.

        path: a .png, .svg or .pdf file to write it to. name: of this model in the legend. beside:
        reports of other models by name, in the same norm. Needs matplotlib; raises
        ModuleNotFoundError without it, ValueError for other files and for another norm. Example:
        `report.plot("distances.pdf")`.
        """
        check_path(path)
        reports = {name or (_NAME if beside else ""): self, **(beside or {})}
        if len({report.norm for report in reports.values()}) > 1:
            norms = ", ".join(f"{name!r}: {report.norm}" for name, report in reports.items())
            raise ValueError(f"reports of one norm go into one figure; got {norms}")
        steps = {name: report._steps() for name, report in reports.items()}
        longest = max(radii[-1] for radii, _ in steps.values())
        for radii, counts in steps.values():  # all curves end together
            radii.append(longest)
            counts.append(counts[-1])
        sizes = {name: report.n for name, report in reports.items()}
        figure = plots.accuracy_against_eps(
            {name: radii for name, (radii, _) in steps.items()},
            {name: [c / sizes[name] for c in counts] for name, (_, counts) in steps.items()},
            intervals={
                name: [wilson_interval(count, sizes[name]) for count in counts]
                for name, (_, counts) in steps.items()
            },
            title=title or f"{tables.shortened(wording.at_eps(self.attack))}, n = {self.n:,}",
            norm=wording.NORMS.get(self.norm, self.norm),
            stairs=True,
        )
        if path is not None:
            plots.save(figure, path)
        return figure

    def summary(self) -> dict[str, Any]:
        """All but the per-sample results, in plain Python values."""
        quantiles = zip(LEVELS, self.quantiles(), strict=True)
        return super().summary() | {
            "distance_quantiles": {f"{level:g}": saved.written(d) for level, d in quantiles}
        }

    def to_markdown(self) -> str:
        """The headline, the quantiles of the distances, and a table of what defines them."""
        return tables.markdown(
            headline=f"**{self._headline()}**",
            facts=self._facts(),
            columns=_COLUMNS,
            rows=self._rows(),
            notes=list(self.explanations.values()),
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "DistanceReport":
        """The report that `save` wrote to a .json file, equal to the one that was saved.

        Nothing in the file is executed. Raises ValueError for anything else, as a report at a
        radius. Example: `fastadv.DistanceReport.load("distances.json").median`.
        """
        found = cls(**saved.read(Path(path), cls))
        missed = found.clean_correct & ~found.success
        if found.eps is not None or not bool(found.distance[missed].isinf().all()):
            raise ValueError(f"{path} is a report at a radius: fastadv.Report.load reads it")
        return found

    def __repr__(self) -> str:
        return f"<DistanceReport: {self._headline()}\n {tables.shortened(self.attack)}>"

    def __str__(self) -> str:
        lines = [f"{row[0]:>6} broken within {row[1]}" for row in self._rows()]
        return "\n".join(
            [
                self.model,
                self.attack,
                f"clean accuracy  {percent(self.clean_accuracy)}",
                "of the samples right as they are",
                *lines,
                f"{self.n:,} samples, {self.seconds:.2f} s{wording.costs(self.cost)}, "
                f"warnings: {wording.warned(self.warnings)}",
            ]
        )

    def _page(self) -> Page:
        clean, left = self.clean_accuracy, self.robust_accuracy
        clean_interval = wilson_interval(int(self.clean_correct.sum()), self.n)
        bars = [Bar("without an attack (clean)", clean, percent(clean), clean_interval)]
        if left > 0:
            bars.append(Bar("no adversarial example found", left, percent(left)))
        norm = wording.NORMS.get(self.norm, self.norm)
        return Page(
            title=self._headline(),
            lead=f"Of {wording.counted(self.n, 'sample')} the model classifies {percent(clean)} "
            "correctly as they are. For each of these the attack looked for the nearest change, in "
            f"{norm}, that makes the model wrong; a better attack may find nearer ones.",
            bars=bars,
            facts=self._facts(),
            columns=_COLUMNS,
            rows=self._rows(),
            shares=[self.accuracy_at(d) if d == d else 0.0 for d in self.quantiles()],
            notes=list(self.explanations.values()),
            words=wording.words(self),
            bar=2,
            of_rows="How far",
            date=self.date,
            examples=self.examples,
            of_examples=wording.examples(self),
        )

    def _headline(self) -> str:
        norm, clean = wording.NORMS.get(self.norm, self.norm), percent(self.clean_accuracy)
        return f"median distance {_short(self.median)} in {norm}, {clean} clean"

    def _facts(self) -> dict[str, str]:
        facts = wording.facts(self)
        del facts["robust accuracy"]
        missed = int((self.clean_correct & ~self.success).sum())
        return {"nothing found for": wording.counted(missed, "sample"), **facts}

    def _rows(self) -> list[list[str]]:
        rows = []
        for level, distance in zip(LEVELS, self.quantiles(), strict=True):
            left = self._farther(distance) if distance == distance else 0
            low, high = wilson_interval(left, self.n)
            spread = f"{100 * low:.1f} to {100 * high:.1f}"
            rows.append([f"{level:.0%}", _short(distance), percent(left / self.n), spread])
        return rows

    def _farther(self, eps: float) -> int:
        return int((self.clean_correct & (self.distance > eps)).sum())

    def _even_radii(self) -> list[float]:
        largest = self._steps()[0][-1]
        return [largest * k / _RADII for k in range(_RADII + 1)] if largest > 0 else [0.0]

    def _steps(self) -> tuple[list[float], list[int]]:
        """(finite distances, ascending from 0, how many samples are still right from there on)."""
        ordered = self.distance[self.clean_correct].sort().values
        radii = ordered[ordered.isfinite()].unique()
        counts = len(ordered) - torch.searchsorted(ordered, radii, right=True)
        return [0.0, *radii.tolist()], [len(ordered), *counts.tolist()]


def _short(distance: float) -> str:
    return (
        "none" if distance != distance else "never" if distance == math.inf else f"{distance:.4g}"
    )
