"""One block of samples after another: attacked, counted, and kept after every attack."""

import contextlib
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from fastadv import diagnostics
from fastadv.attacks.result import AttackResult
from fastadv.ensemble.cascade import Progress
from fastadv.ensemble.constructor import AutoAttack
from fastadv.ensemble.versions import name_of, reserved_of
from fastadv.evaluation.clean import logits_of
from fastadv.evaluation.display import Status, Watch
from fastadv.evaluation.processes import Place
from fastadv.evaluation.state import State, Unfinished, added, added_counts
from fastadv.execution import Execution
from fastadv.isolation import Model

# judged on all samples at the end: 0.2 % of a block is another question
_OF_ALL_SAMPLES = ("square_gains",)
# of the look at the clean samples, which a resumed block has again
_BEFORE_THE_ATTACKS = ("probabilities", "randomised", "dynamic")


class SampleAttack(Protocol):
    """What `evaluate` asks of an attack: `run`, as `Attack` and the ensembles have it."""

    def run(
        self, model: Model, x: torch.Tensor, y: torch.Tensor | None = None, *,
        sample_ids: torch.Tensor | None = None, execution: Execution | None = None,
    ) -> AttackResult:  # fmt: skip
        ...


@dataclass
class Task:
    """What is the same for every block; device is None for a model that names none.

    keep: called whenever `State` has changed, to write it.
    """

    model: Model
    attack: SampleAttack
    execution: Execution
    device: torch.device | None
    place: Place
    expected: int | None
    keep: Callable[[], None]
    watch: Watch

    def attack_block(self, x: torch.Tensor, y: torch.Tensor, state: State, digest: str) -> None:
        """Attack one block and enter its results in `state`; go on with it if it is unfinished.

        digest: of the data up to the end of this block.
        """
        if self.device is not None:
            x, y = x.to(self.device), y.to(self.device)
        before = state.unfinished
        began = time.perf_counter() - (before.seconds if before else 0.0)
        with collected() as counts:
            result = self._run(x, y, state, digest, began, counts)
            clean, forwards = result.clean_prediction, result.forwards
            if clean is None:  # keep="last" never looks at the clean samples
                clean = self.clean_logits(x).argmax(1)
                forwards += len(x)
        broken_by = result.broken_by
        if broken_by is None:
            broken_by = torch.where(result.success, 0, -1)
        state.extend(
            clean_correct=clean == y, success=result.success, step=result.step,
            distance=before.with_distances(result.distance) if before else result.distance,
            broken_by=broken_by,
        )  # fmt: skip
        state.digest = digest
        state.forwards += forwards
        state.backwards += result.backwards
        state.warnings = added_counts(state.warnings, _all_counts(before, counts()))
        state.stages = added(state.stages, [stage._asdict() for stage in result.stages])
        state.seconds += time.perf_counter() - began
        state.unfinished = None
        self.keep()
        self.watch(self._status(state, "", 0))

    def _run(
        self, x: torch.Tensor, y: torch.Tensor, state: State, digest: str, began: float,
        counts: Callable[[], dict[str, int]],
    ) -> AttackResult:  # fmt: skip
        attack, before = self.attack, state.unfinished
        rank, world = self.place
        own = torch.arange(state.done, state.done + len(x), device=x.device)
        common: dict[str, Any] = dict(sample_ids=rank + world * own, execution=self.execution)
        if not isinstance(attack, AutoAttack):
            name = getattr(attack, "constructor", type(attack).__name__)
            self.watch(self._status(state, name, len(x)))
            return attack.run(self.model, x, y, **common)

        def after_stage(progress: Progress) -> None:
            distance = attack.threat.distance(progress.x_adv, x)
            state.unfinished = Unfinished.of(
                progress, before.with_distances(distance) if before else distance, digest=digest,
                seconds=time.perf_counter() - began,
                warnings={
                    code: count
                    for code, count in _all_counts(before, counts()).items()
                    if code not in _BEFORE_THE_ATTACKS
                },
            )  # fmt: skip
            self.keep()
            show(progress)

        def show(progress: Progress) -> None:
            stage, count = len(progress.stages), len(attack.attacks)
            if stage < count:
                is_reserved = stage >= count - reserved_of(attack.version)
                rows = progress.doubtful if is_reserved else progress.robust
                name = name_of(attack.attacks[stage])
                self.watch(self._status(state, name, int(rows.sum())))

        progress = before.progress(x) if before else None
        if progress is None:
            self.watch(self._status(state, name_of(attack.attacks[0]), len(x)))
        else:
            show(progress)
        return attack.run(self.model, x, y, progress=progress, on_stage=after_stage, **common)

    def clean_logits(self, x: torch.Tensor, *, reseed: int = 0) -> torch.Tensor:
        size, seed = self.execution.batch_size or len(x), getattr(self.attack, "seed", 0) or 0
        return logits_of(self.model, x, batch_size=size, seed=seed + reseed)

    def _status(self, state: State, attack: str, attacked: int) -> Status:
        robust = state.columns["clean_correct"] & ~state.columns["success"]
        return Status(state.done, self.expected, int(robust.sum()), attack, attacked)


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
