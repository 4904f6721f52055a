"""One block of samples after another: attacked, counted, and kept after every attack."""

import contextlib
import functools
import inspect
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from fastadv import diagnostics
from fastadv.attacks.call import inputs
from fastadv.attacks.call.result import AttackResult, Stage
from fastadv.engine import looks
from fastadv.ensemble import checks
from fastadv.ensemble.cascade import Progress
from fastadv.ensemble.constructor import AutoAttack
from fastadv.ensemble.versions import name_of, reserved_of
from fastadv.evaluation.checkpoint import fingerprints
from fastadv.evaluation.display import Status, Watch
from fastadv.evaluation.examples import Pixels, first, pixels_of
from fastadv.evaluation.held import unsized
from fastadv.evaluation.question import Answers, Question
from fastadv.evaluation.samples import Rows
from fastadv.evaluation.share import Share
from fastadv.evaluation.state import COLUMNS, Block, State, Unfinished, added_counts
from fastadv.execution import Execution
from fastadv.isolation import Model

# judged on all samples at the end: 0.2 % of a block is another question
_OF_ALL_SAMPLES = ("square_gains",)
# of the look at the clean samples, which a resumed block has again
_BEFORE_THE_ATTACKS = (
    *("probabilities", "squashed", "randomised", "dynamic"),
    *("recorded_in_training", "zero_radius", "small_radius", "rounded_input"),
)


class SampleAttack(Protocol):
    """What `evaluate` asks of an attack: `run`, as `Attack` and the ensembles have it; with extra=
    too, where the data have more than (x, y)."""

    def run(
        self,
        model: Model,
        x: torch.Tensor,
        y: torch.Tensor | None = None,
        *,
        sample_ids: torch.Tensor | None = None,
        execution: Execution | None = None,
    ) -> AttackResult: ...


@dataclass
class Task:
    """What is the same for every block of a process; device is None for a model that names none.

    is_sized: whether the caller or the data say how many samples are attacked at once. state: of
    this process, where results are entered. keep: called whenever it has changed, to
    write it. expected: samples of all processes, a guess or None.
    """

    model: Model
    attack: SampleAttack
    question: Question
    execution: Execution
    device: torch.device | None
    share: Share
    expected: int | None
    state: State
    keep: Callable[[], None]
    watch: Watch
    is_sized: bool = True

    def __post_init__(self) -> None:
        rows = self.share.finished_of_this_process()
        self._done = len(rows["ids"])
        self._robust = int((rows["clean_correct"] & ~rows["success"]).sum())
        self._under_way, self._running = 0.0, ("", 0)
        if self.expected is not None:
            self.expected = int(self.share.takes(torch.arange(self.expected)).sum())

    def attack_block(self, rows: Rows, before: Unfinished | None) -> None:
        """Attack one block and enter its results; before: what is done of it already."""
        marks = before.fingerprints if before else fingerprints(*rows.columns[1:])
        rows = rows.to(self.device)
        x, y = rows.x, rows.y
        began = time.perf_counter() - (before.seconds if before else 0.0)
        with collected() as counts, looks.heard_by(functools.partial(self._hear, len(x))):
            rows = rows._replace(x=self._inside(x))
            result = self._run(rows, marks, before, began, counts)
            clean, forwards = result.clean_prediction, result.forwards
            clean_score = result.clean_score
            if clean is None:  # keep="last" never looks at the clean samples
                clean, clean_score, *_ = self.answers(rows)
                clean, forwards = clean.to(y.device), forwards + len(x)
        found_counts = counts()
        if result.inset and self.execution.inset is None:  # by this block or by one before it
            found_counts["clamped_input"] = len(x)
        if "recorded_in_training" in found_counts:  # said at the first pass, of its samples
            found_counts["recorded_in_training"] = len(x)
        no_score = torch.full_like(result.distance, torch.nan)
        broken_by = result.broken_by
        if broken_by is None:
            broken_by = torch.where(result.success, 0, -1)
        found = dict(
            ids=rows.ids,
            fingerprints=marks,
            clean_correct=self.question.are_right(clean, y),
            success=result.success,
            step=result.step,
            distance=before.with_distances(result.distance) if before else result.distance,
            broken_by=broken_by,
            clean_score=no_score if clean_score is None else clean_score,
            score=no_score if result.score is None else result.score,
        )
        broken = found["clean_correct"] & result.success
        columns = {name: found[name].cpu().to(kind).clone() for name, kind in COLUMNS.items()}
        self._done += len(x)
        self._robust += int((columns["clean_correct"] & ~columns["success"]).sum())
        self.state.finish(
            Block(
                columns,
                *self.share.place,
                forwards,
                result.backwards,
                time.perf_counter() - began,
                _all_counts(before, found_counts),
                [stage._asdict() for stage in result.stages],
                result.cost._asdict(),
            ),
            self._examples(rows, before, result.x_adv, result.prediction, broken),
        )
        self.keep()
        self._under_way = 0.0
        self._show("", 0)

    def finish(self) -> None:
        """Nothing is left: so many samples there were."""
        if self.expected != self._done:
            self.expected = self._done
            self._show("", 0)

    def _run(
        self,
        rows: Rows,
        marks: torch.Tensor,
        before: Unfinished | None,
        began: float,
        counts: Callable[[], dict[str, int]],
    ) -> AttackResult:
        attack, execution, ids = self.attack, self.execution, rows.ids
        x, y = rows.x, rows.y
        if self.state.inset and execution.inset is None:
            execution = replace(execution, inset=self.state.inset)
        if not self.is_sized:
            execution = unsized(execution, attack, self.model, x)
        common: dict[str, Any] = dict(sample_ids=ids.to(x.device), execution=execution)
        if rows.extra:
            check_extra(attack, len(rows.extra))
            common["extra"] = rows.extra
        if not isinstance(attack, AutoAttack):
            name = getattr(attack, "constructor", type(attack).__name__)
            self._show(name, len(x))
            result = attack.run(self.model, x, y, **common)
            self._note_inset(result.inset)
            return result

        def after_stage(progress: Progress) -> None:
            distance = attack.threat.distance(progress.x_adv, x)
            part = Unfinished.of(
                progress,
                before.with_distances(distance) if before else distance,
                ids=ids,
                fingerprints=marks,
                seconds=time.perf_counter() - began,
                warnings={
                    code: count
                    for code, count in _all_counts(before, counts()).items()
                    if code not in _BEFORE_THE_ATTACKS
                },
                examples=self._examples(
                    rows, before, progress.x_adv, progress.prediction, progress.broken_by >= 0
                ),
            )
            self.state.begin(part)
            self._note_inset(progress.inset)
            self.keep()
            show(progress)

        def show(progress: Progress) -> None:
            stage, count = len(progress.stages), len(attack.attacks)
            if stage < count:
                rows = progress.attacked_by(stage, count, reserved_of(attack.version))
                name = name_of(attack.attacks[stage])
                self._show(name, int(rows.sum()))

        progress = before.progress(x) if before else None
        if progress is None:
            self._show(name_of(attack.attacks[0]), len(x))
        else:
            show(progress)
        return attack.run(self.model, x, y, progress=progress, on_stage=after_stage, **common)

    def _examples(
        self,
        rows: Rows,
        before: Unfinished | None,
        x_adv: torch.Tensor,
        prediction: torch.Tensor,
        broken: torch.Tensor,
    ) -> list[Pixels]:
        """The first of the `broken` samples of a block, with those of its attacks before an
        interruption, of which x_adv is no longer there."""
        if self.question.objective is not None:  # whose predictions are no labels
            return []
        known = [] if before is None else before.examples
        if before is not None:
            broken = broken.cpu() & ~before.fallen
        threat = getattr(self.attack, "threat", None)
        found = pixels_of(rows, x_adv, prediction, broken, threat, self.state.examples)
        return first([*known, *found])

    def _inside(self, x: torch.Tensor) -> torch.Tensor:
        """The samples that count: clamped where rounding alone took them out of bounds."""
        threat = getattr(self.attack, "threat", None)
        return x if threat is None else inputs.check_inside(x, threat)

    def _note_inset(self, inset: float) -> None:
        """What one attack has found holds for what this process attacks from now on."""
        if self.execution.inset is None:
            self.state.inset = max(self.state.inset, inset)

    def answers(self, rows: Rows, *, reseed: int = 0, closely: bool = False) -> Answers:
        """What the model says of the samples as they are."""
        size, seed = self.execution.batch_size or len(rows.x), getattr(self.attack, "seed", 0) or 0
        return self.question.answers(
            self.model, rows, batch_size=size, seed=seed + reseed, closely=closely
        )

    def _hear(self, size: int, look: looks.Look) -> None:
        """Of a block of `size` samples. Never back: memory that runs out starts slots again."""
        self._under_way = max(self._under_way, look.share * size)
        self._show(*self._running)

    def _show(self, attack: str, attacked: int) -> None:
        self._running = attack, attacked
        done = self._done, self.expected, self._robust
        self.watch(Status(*done, attack, attacked, self._under_way))


def gains_of_square(attack: SampleAttack, stages: Sequence[Stage]) -> checks.Gains:
    """Of the stages of `attack`, none if it is no ensemble."""
    reserved = reserved_of(attack.version) if isinstance(attack, AutoAttack) and stages else ()
    return checks.gains_of_square(stages, len(reserved))


def check_extra(attack: SampleAttack, count: int) -> None:
    """Raises ValueError for an attack whose run knows no extra=."""
    parameters = inspect.signature(attack.run).parameters
    takes_all = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
    if not takes_all and "extra" not in parameters:
        raise ValueError(
            f"data yield {count + 2} tensors, (x, y, *extra), but this attack takes no extra= for "
            f"the model: {attack!r}"
        )


def _all_counts(before: Unfinished | None, counts: dict[str, int]) -> dict[str, int]:
    counts = {code: count for code, count in counts.items() if code not in _OF_ALL_SAMPLES}
    return added_counts(before.warnings if before else {}, counts)


@contextlib.contextmanager
def collected() -> Iterator[Callable[[], dict[str, int]]]:
    """A function that adds up the `AttackWarning`s so far by code; any other warning goes on its
    way at the end."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", diagnostics.AttackWarning)

        def counts() -> dict[str, int]:
            found: dict[str, int] = {}
            for warning in caught:
                if isinstance(warning.message, diagnostics.AttackWarning):
                    found = added_counts(found, {warning.message.code: warning.message.count})
            return found

        yield counts
    for warning in caught:
        if not isinstance(warning.message, diagnostics.AttackWarning):
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
