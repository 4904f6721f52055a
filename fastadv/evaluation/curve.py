"""Robust accuracy at several radii, for little more than the dearest of them."""

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fastadv import diagnostics
from fastadv.attacks import Attack
from fastadv.ensemble.constructor import AutoAttack
from fastadv.evaluation import saved_curve, tables
from fastadv.evaluation.accuracy import check_one_size, generator_put_back
from fastadv.evaluation.checkpoint import digest_of_model
from fastadv.evaluation.clean import describe_model, device_of, without_wrapper
from fastadv.evaluation.display import Watch, shown
from fastadv.evaluation.environment import describe_environment
from fastadv.evaluation.page import Page
from fastadv.evaluation.processes import exchange_of_processes
from fastadv.evaluation.proportions import percent, wilson_interval
from fastadv.evaluation.question import Question
from fastadv.evaluation.radii import AtRadii, at_radius
from fastadv.evaluation.report import UNKNOWN_EXECUTION
from fastadv.evaluation.samples import Data, Samples
from fastadv.evaluation.tuned import execution_for
from fastadv.execution import Auto, Execution
from fastadv.files import write_atomically
from fastadv.isolation import Model, module_of
from fastadv.tuning.table import in_words
from fastadv.values import same_value

_COLUMNS = ("eps", "robust accuracy", "95 %", "attacked", "forwards", "backwards")


@dataclass(frozen=True, eq=False, repr=False)
class Curve:
    """Robust accuracy of a model on n samples at the radii `eps`, ascending.

    clean_correct: (n,) bool. robust: (n, K) bool, for each radius; what is robust at one is robust
    at every smaller one. attack: its repr at the largest radius. attacked, forwards, backwards:
    (K,) how many samples each radius still had to attack, and samples times passes, here: where
    slots wait for work they count. warnings: samples for each code of `AttackWarning`, of all
    radii together, where a sample may count once for each. execution: how attacks ran.
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
            headline=f"**Robust accuracy at {len(self.eps)} radii**",
            facts=self._facts(),
            columns=_COLUMNS,
            rows=self._rows(),
            notes=[],
        )

    def to_html(self) -> str:
        """The same as one file without external resources, for light and dark screens."""
        return Page(
            title=f"Robust accuracy at {len(self.eps)} radii",
            lead=f"{percent(self.clean_accuracy)} clean, {self.n:,} samples",
            facts=self._facts(),
            columns=_COLUMNS,
            rows=self._rows(),
            shares=self.robust_accuracy,
            notes=[],
            bar=1,
        ).html()

    def _facts(self) -> dict[str, str]:
        warned = [f"{code} ({count:,} samples)" for code, count in self.warnings.items()]
        return {
            "model": self.model,
            "attack": f"`{self.attack}`, and with the other radii",
            "samples": f"{self.n:,}",
            "clean accuracy": percent(self.clean_accuracy),
            "passes": f"{self.relative_cost:.2f} times those of the dearest radius",
            "execution": f"`{self.execution}`",
            "warnings": ", ".join(warned) or "none",
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
            f"{percent(accuracy)} at {eps:.4g}"
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
        cost = (
            f"{self.n:,} samples, {self.relative_cost:.2f} times the passes of the dearest radius"
        )
        return "\n".join([self.model, self.attack, clean, *lines, cost])

    def _rows(self) -> list[list[str]]:
        return [
            [
                f"{eps:.6g}",
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


def robustness_curve(
    model: Model,
    data: Data,
    attack: Attack | AutoAttack,
    eps: Sequence[float],
    *,
    batch_size: int | None = None,
    execution: Execution | Auto | None = None,
    progress: bool | Watch = True,
) -> Curve:
    """Clean accuracy, and robust accuracy at every radius in `eps`, in one pass over the data.

    The radii are attacked from the largest down. A sample that survives one counts as robust at
    every smaller one, whose ball lies inside; one whose adversarial example lies within a smaller
    radius is broken there as well; only the others are attacked again. attack: an attack or an
    ensemble, whose own radius is replaced: see `fastadv.evaluation.at_radius`. eps: in any order.
    Other arguments as in `evaluate`; under torchrun every process attacks everything. Unlike
    separate evaluations, a sample that a weak attack breaks at a small radius only counts as
    robust there, so the curve may lie above them where the attack is far from its best. Raises
    ValueError for radii that are no different numbers >= 0; at 0 it is the clean accuracy.

    Example: `fastadv.robustness_curve(net, (x, y), attack, eps=[k / 255 for k in (1, 2, 4, 8)])`.
    """
    radii = _checked_radii(eps)
    check_one_size(attack)
    attacks = [at_radius(attack, radius) for radius in radii]
    model = without_wrapper(model)
    with generator_put_back(), exchange_of_processes(None) as exchange:
        how = execution_for(
            execution, model, data, attacks[-1], batch_size=batch_size, path=None, exchange=exchange
        )
    size = how.batch_size if batch_size is None else batch_size
    judged = Question.of(attack).objective is not None
    samples = Samples(data, batch_size=size, judged=judged)
    how = replace(how, batch_size=samples.batch_size)
    run = AtRadii(model, attacks, how, device_of(model), is_sized=samples.is_sized)
    with generator_put_back(), shown(progress) as watch:
        for block in samples.blocks():
            run.attack_block(block, watch, samples.expected)
        run.finish(watch, samples.expected)
    if run.done == 0:
        raise ValueError("data is empty: there is nothing to evaluate")
    for code, count in run.all_warnings().items():
        diagnostics.warn(code, count, run.done, of_ensemble=isinstance(attack, AutoAttack))
    device = run.device or samples.device
    return Curve(
        model=describe_model(model, digest_of_model(module_of(model))),
        attack=repr(attacks[-1]),
        eps=tuple(radii),
        clean_correct=torch.cat(run.clean_correct),
        robust=torch.cat(run.robust),
        attacked=tuple(run.attacked),
        forwards=tuple(run.forwards),
        backwards=tuple(run.backwards),
        warnings=run.all_warnings(),
        environment=describe_environment(device),
        execution=in_words(how),
    )


def _checked_radii(eps: object) -> list[float]:
    if isinstance(eps, str) or not isinstance(eps, Iterable):
        raise TypeError(f"eps must be a list of radii, as in eps=[2 / 255, 8 / 255]; got {eps!r}")
    radii = sorted(float(radius) for radius in eps)
    if not radii or len(set(radii)) != len(radii) or not 0 <= radii[0] <= radii[-1] < math.inf:
        raise ValueError(
            f"eps must be different radii >= 0, at least one and none infinite; got {list(eps)}"
        )
    return radii
