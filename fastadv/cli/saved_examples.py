"""`evaluate --save-adversarial`: the examples of an evaluation, kept with it and saved after it."""

from pathlib import Path

from fastadv.attacks import Attack
from fastadv.cli.kept_examples import KeptExamples, Recorder
from fastadv.cli.outcome import Outcome, check_place, outcome_of, save_outcome
from fastadv.cli.sources import Samples
from fastadv.cli.user_error import UserError
from fastadv.ensemble.constructor import AutoAttack
from fastadv.evaluation import Report
from fastadv.isolation import Model

_BATCH_SIZE = 128


class Saved:
    """Where the examples of an evaluation are while it goes on, and go to in the end.

    Beside a --checkpoint of the user's they stay, as it does; without one both lie in a folder
    beside `path`, which is deleted once the examples are saved. Processes share that folder.
    """

    def __init__(
        self,
        path: Path,
        samples: Samples,
        attack: Attack | AutoAttack,
        checkpoint: Path | None,
        *,
        as_bytes: bool,
    ) -> None:
        check_place("save-adversarial", path, samples)
        self._path, self._samples = path, samples
        self._as_bytes = as_bytes or path.suffix == ""
        self._is_passing = checkpoint is None
        folder = path.with_name(f"{path.name}.checkpoint")
        if checkpoint is not None:
            folder = checkpoint.with_name(f"{checkpoint.name}.examples")
            if checkpoint.exists() and not folder.is_dir():
                raise UserError(
                    f"--save-adversarial: {checkpoint} was begun without it, and the examples of "
                    "what it has finished were not kept: choose another --checkpoint"
                )
        self.checkpoint: Path = checkpoint or folder / "evaluation.pt"
        self.recorder: Recorder = Recorder(attack, KeptExamples(folder))
        self.recorder.kept.check(f"--save-adversarial: the checkpoint {folder}")

    def begin(self) -> None:
        """Before the evaluation: nothing is written for one that is refused."""
        self.recorder.kept.folder.mkdir(parents=True, exist_ok=True)

    def save(self, model: Model, report: Report, *, size: int | None) -> Outcome:
        outcome = outcome_of(
            model,
            self._samples,
            self.recorder,
            report,
            as_bytes=self._as_bytes,
            size=size or _BATCH_SIZE,
        )
        save_outcome(outcome, self._samples, self._path)
        if self._is_passing:
            self.recorder.kept.discard()
        return outcome
