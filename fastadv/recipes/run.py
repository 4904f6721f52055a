"""A training run from a recipe: epochs, checkpoints, rescue after a collapse, and the result."""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import nn

from fastadv.diagnostics import emit
from fastadv.files import save_tensors
from fastadv.recipes.learner import Learner
from fastadv.recipes.progress import Progress, epoch_line
from fastadv.recipes.run_log import Row, RunLog, Scalars, read_log
from fastadv.recipes.run_state import (
    Identity,
    Position,
    check_folder,
    read_checkpoint,
    save_run,
)
from fastadv.recipes.settings import Recipe
from fastadv.recipes.sources import check_data, split
from fastadv.training import Check, Collapse, TrainingWarning
from fastadv.training.verdict import in_words

OnEpoch = Callable[[Row], None]


@dataclass(frozen=True)
class Result:
    """What came of a run; `out` has it as files.

    model: the network, in eval mode, with the weights of model.pt: the averaged ones if the recipe
    averages. rows: of the log, see `epochs`. best_epoch: whose weights best.pt has.
    """

    out: Path
    model: nn.Module
    rows: tuple[Row, ...]
    best_epoch: int

    @property
    def epochs(self) -> tuple[Row, ...]:
        """One row an epoch: loss, clean and robust accuracy on held-out training samples, ..."""
        return tuple(row for row in self.rows if row["event"] == "epoch")


def train(
    recipe: Recipe,
    data: tuple[torch.Tensor, torch.Tensor],
    out: str | os.PathLike[str],
    *,
    model: nn.Module | None = None,
    device: torch.device | str | None = None,
    resume: bool = False,
    progress: bool = True,
    tensorboard: bool = False,
    checkpoint_every: int | None = None,
    on_epoch: OnEpoch | None = None,
) -> Result:
    """Train the recipe's network on `data` and write everything to the folder `out`.

    data: (N, C, H, W) uint8 images and (N,) labels, training samples only. model: a network of
    one's own in place of the recipe's, which is trained as it is given. device: "cuda" if there
    is one, else "cpu". out: log.jsonl (a row an epoch and an event); last.pt, the checkpoint,
    written every `checkpoint_every` batches (None: once a minute) and every epoch; best.pt, the
    weights of the epoch with the highest PGD accuracy on held-out samples; model.pt, the final
    ones; good.pt, where the sentinel stopped or only warned, the last good ones. resume: go on from
    last.pt, or from the beginning if there is none, also with more epochs, over which the learning
    rate is stretched; killed at any point and resumed, a run on a CPU
    ends with the same bits (with as many threads: another number is warned of). progress: a line an
    epoch, and a bar on a terminal. on_epoch: called with each epoch's row. The global generators
    are neither read nor written. Raises ValueError or TypeError for data that do not fit, and for a
    folder with another run; `Collapse` where the sentinel stops, and for final weights that are not
    finite; warns of what it sees by `TrainingWarning`.

    Example: `train(recipe("digits", "fast"), training_data("digits"), "digits-fast")`.
    """
    images, labels = data
    if model is not None and not recipe.is_own_model:
        recipe = replace(recipe, model=f"own:{type(model).__name__}")
    check_data(images, labels, classes=recipe.classes)
    if checkpoint_every is not None and checkpoint_every < 1:
        raise ValueError(f"checkpoint_every must be at least 1; got {checkpoint_every}")
    chosen = _device(device)
    folder = check_folder(out, resume=resume)
    identity = Identity.of(recipe, images, labels.long())
    saved = read_checkpoint(folder / "last.pt", identity)
    position = Position(epochs=recipe.epochs)
    more = 0
    if saved:
        position, before = Position(**saved["position"]), saved["recipe"]["epochs"]
        more = recipe.epochs - before
        position.epochs += more
        position.finished &= not more
    learner = Learner(
        recipe,
        split(images.to(chosen), labels.long().to(chosen), held_out=recipe.held_out),
        position,
        checkpoint_every=checkpoint_every,
        model=model,
    )
    if saved:
        learner.restore(saved)
        _warn_of_threads(position.threads, chosen)
    folder.mkdir(parents=True, exist_ok=True)  # nothing is refused from here on
    screen = Progress(wanted=progress)
    if resume and not saved:
        screen.say(f"nothing to go on from in {folder}: begins")
    if position.finished:
        screen.say(header(recipe, learner))
        screen.say(f"has finished: {position.epochs} epochs; resume with more of them to train on")
    else:
        log = RunLog(folder / "log.jsonl", length=position.log_length)
        run = _Run(folder, identity, learner, position, log, screen, on_epoch, raised=more > 0)
        run.scalars = Scalars(folder / "tensorboard", epoch=position.epoch) if tensorboard else None
        run.go_on()
    return Result(
        folder, learner.network.eval(), tuple(read_log(folder / "log.jsonl")), position.best_epoch
    )


def _warn_of_threads(before: int, device: torch.device) -> None:
    now = torch.get_num_threads()
    if device.type == "cpu" and now != before:
        message = f"threads: the run had {before}, now there are {now}: its last bits may differ"
        emit(TrainingWarning("threads", message))


def _device(wanted: torch.device | str | None) -> torch.device:
    has_cuda = torch.cuda.is_available()
    try:
        device = torch.device(wanted or ("cuda" if has_cuda else "cpu"))
    except RuntimeError as error:
        raise ValueError(f"device must be cpu, cuda, cuda:1 or the like; got {wanted!r}") from error
    if device.type == "cuda" and not has_cuda:
        raise ValueError(f"device {wanted!r} was asked for: torch sees no CUDA here")
    return device


@dataclass
class _Run:
    """The files of a run, and what is written to them when."""

    folder: Path
    identity: Identity
    learner: Learner
    position: Position
    log: RunLog
    screen: Progress
    on_epoch: OnEpoch | None
    scalars: Scalars | None = None
    raised: bool = False  # there are more epochs than there were
    _kept: str = "nothing is kept yet, and this begins again:"

    def go_on(self) -> None:
        """From where the position is to the end."""
        try:
            if self.log.length == 0:
                self._begin()
            else:
                self._resume()
            while self.position.epoch < self.position.epochs:
                self._epoch()
        except Collapse as collapse:
            self.log.append("stopped", code=collapse.code, message=str(collapse))
            self._save_good()
            raise
        except KeyboardInterrupt as interrupt:
            interrupt.add_note(f"interrupted: {self._kept}")
            raise
        finally:
            if self.scalars is not None:
                self.scalars.close()

    def _begin(self) -> None:
        (self.folder / "good.pt").unlink(missing_ok=True)  # of a run that was here before
        recipe, learner = self.identity.recipe, self.learner
        samples, held = len(learner.loader.images), len(learner.held_out.y)
        self.log.append(
            "run",
            **asdict(self.identity),
            device=str(learner.held_out.y.device),
            samples=samples,
            held_out=held,
            threads=torch.get_num_threads(),
        )
        self.screen.say(header(recipe, learner))

    def _resume(self) -> None:
        position, batches = self.position, len(self.learner.loader)
        if self.raised:
            self.log.append("raised", epochs=position.epochs, recipe=asdict(self.identity.recipe))
        self._note_kept()
        self.screen.say(header(self.identity.recipe, self.learner))
        if position.epoch < position.epochs:
            self.screen.say(
                f"goes on in epoch {position.epoch + 1} of {position.epochs}, after "
                f"{position.batches - position.epoch * batches} of its {batches} batches"
            )

    def _note_kept(self) -> None:
        position, batches = self.position, len(self.learner.loader)
        part = position.batches - position.epoch * batches
        self._kept = (
            f"{self.folder / 'last.pt'} has {position.epoch} of {position.epochs} epochs, and "
            f"{part} of {batches} batches of the next; this goes on from there:"
        )

    def _epoch(self) -> None:
        position, learner = self.position, self.learner
        title = f"epoch {position.epoch + 1}/{position.epochs}"
        batches = len(learner.loader)
        done = position.batches - position.epoch * batches
        with self.screen.bar(title, done=done, total=batches) as advance:
            for checks, rescue in learner.epoch():
                self._enter(checks, rescue)
                if learner.is_checkpoint_due():
                    self._save()
                advance()
        self._close_epoch()

    def _enter(self, checks: Sequence[Check], rescue: str) -> None:
        position = self.position
        for check in checks:
            self.log.append("check", **asdict(check), said=self._in_words(check))
        if rescue:
            self.log.append("rollback", batch=position.batches, step=rescue, epochs=position.epochs)
        elif any(check.verdict not in ("good", "suspect") for check in checks):
            self._save_good()

    def _in_words(self, check: Check) -> str:
        sentinel = self.learner.sentinel
        threat = repr(sentinel.threat)
        return in_words(check, sentinel.history, threat=threat, floor=sentinel.floor)

    def _save_good(self) -> None:
        weights = self.learner.sentinel.good_weights
        assert weights is not None, "the learner keeps those it begins with"
        save_tensors(self.folder / "good.pt", weights)

    def _close_epoch(self) -> None:
        position, learner = self.position, self.learner
        row = self.log.append("epoch", **learner.close_epoch())
        loss, robust = float(row["loss"]), row["robust"]
        if math.isfinite(loss) and robust > position.best:
            position.best, position.best_epoch = robust, row["epoch"]
            save_tensors(self.folder / "best.pt", learner.network.state_dict())
        if position.epoch == position.epochs:
            self._enter(*learner.finish())
        if position.epoch == position.epochs:
            self._check_final_weights()
            save_tensors(self.folder / "model.pt", learner.network.state_dict())
            self.log.append(
                "finished",
                epochs=position.epochs,
                best_epoch=position.best_epoch,
                best=position.best,
                rollbacks=learner.sentinel.rollbacks,
                seconds=position.seconds,
            )
            position.finished = True
        self._save()
        self.screen.say(epoch_line(row, epochs=position.epochs))
        if self.scalars is not None:
            self.scalars.add(row)
        if self.on_epoch is not None:
            self.on_epoch(row)

    def _check_final_weights(self) -> None:
        if not all(bool(w.isfinite().all()) for w in self.learner.network.state_dict().values()):
            message = "the final weights are not finite: good.pt has the last good ones."
            raise Collapse("nan", message)

    def _save(self) -> None:
        self.position.threads = torch.get_num_threads()
        self.position.log_length = self.log.length
        self.learner.enter_position()
        save_run(self.folder / "last.pt", self.identity, self.position, self.learner.parts)
        self._note_kept()


def header(recipe: Recipe, learner: Learner) -> str:
    """What is trained, in one line, and what the sentinel demands."""
    samples, held = len(learner.loader.images), len(learner.held_out.y)
    floor = f", floor {100 * recipe.floor:.3g} % under PGD-10" if recipe.floor else ""
    return (
        f"{recipe.model} by {learner.step!r} on {samples:,} samples of {recipe.dataset} "
        f"({held:,} held out), {_epochs(recipe.epochs)} of {len(learner.loader)} batches, seed "
        f"{recipe.seed}; on collapse: {recipe.on_collapse}{floor}"
    )


def _epochs(count: int) -> str:
    return "1 epoch" if count == 1 else f"{count} epochs"
