"""What a check of a network in training means: good, collapsed, stuck or NaN, and why in words."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

Verdict = Literal["good", "suspect", "collapse", "weak", "stuck", "nan"]

# What one step hides of the accuracy that PGD-10 takes, seen on MNIST at eps 0.3, 1,000 held-out
# samples a quarter of an epoch (docs/measured.md). Early on, with little robustness to hide, it is
# 0.6 to 0.8 in every run; then it falls below 0.6. It stays below 0.7, but for single checks, where
# PGD-50-10 is left 84.6 % of the test samples in the end; it rises to 0.69, 0.76, 0.81 and 0.83
# where it is left 75.6, 79.2, 72.2 and 74.7 %, and to 1.0 where none. PGD-5 ends at 0.46.
_SOUND = 0.65
_FADING = 0.72
_MASKED = 0.85
_MASKED_GAP = 0.15
_STUCK = 0.02  # a mean loss this close to ln(C), relatively, is that of a constant prediction
_ONE_CLASS = 0.99
_FEWEST = 10  # samples behind what is called hidden: fewer are chance


class TrainingWarning(UserWarning):
    """Training went wrong; `code` is "collapse", "weak", "stuck", "nan", "eval" or "threads"."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Collapse(RuntimeError):
    """Training was stopped for `code`; the last good weights are back in the model."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Check:
    """A look at a network in training, after `batch` batches.

    clean, single_step, pgd: accuracy of held-out samples, clean, under one step of 1.25 eps from a
    random start, under PGD-10. samples: their number. one_class: the share of the commonest
    prediction. train_loss, craft_loss: means over the batches since the last check, NaN where there
    is none. classes: C. is_warm: eps has grown to its full size. verdict: "good", "suspect",
    "collapse", "weak", "stuck" or "nan".
    """

    batch: int
    clean: float
    single_step: float
    pgd: float
    samples: int
    one_class: float
    train_loss: float
    craft_loss: float
    classes: int
    is_warm: bool
    verdict: Verdict = "good"

    @property
    def hidden(self) -> float:
        """The share of the accuracy that PGD takes and one step does not: 1 is a perfect mask."""
        taken, shown = self.clean - self.pgd, self.single_step - self.pgd
        return shown / taken if shown * self.samples >= _FEWEST else 0.0

    @property
    def is_masked(self) -> bool:
        """Nearly all of what PGD takes is hidden from one step: catastrophic overfitting."""
        return self.single_step - self.pgd >= _MASKED_GAP and self.hidden >= _MASKED

    @property
    def is_sound(self) -> bool:
        """Robust, and one step shows it."""
        return self.is_warm and self.pgd >= self.clean / 2 and self.hidden <= _SOUND

    @property
    def is_constant(self) -> bool:
        """The loss, or the predictions, of a network that answers one class to everything."""
        chance = math.log(self.classes)
        return abs(self.train_loss - chance) < _STUCK * chance or self.one_class >= _ONE_CLASS


def judge(check: Check, since: Sequence[Check], *, patience: int) -> Check:
    """`check` with its verdict; since: the checks before it.

    "nan": the training loss is not finite. "stuck": the last `patience` checks are constant. Once
    eps is warm, a check is bad if it is masked, or if after a sound one (hidden <= 0.65) one step
    hides 0.72 of what PGD takes, or PGD accuracy is half of its best. "suspect" the first time,
    because single-step training has bad moments that pass; "collapse" the second in a row.
    """
    if not math.isfinite(check.train_loss):
        return replace(check, verdict="nan")
    recent = [*since, check][-patience:]
    if len(recent) == patience and all(seen.is_constant for seen in recent):
        return replace(check, verdict="stuck")
    is_bad = check.is_masked
    if any(seen.is_sound for seen in since):
        is_bad |= check.hidden >= _FADING or check.pgd < best_pgd(since) / 2
    if not (check.is_warm and is_bad):
        return check
    again = since and since[-1].verdict in ("suspect", "collapse")
    return replace(check, verdict="collapse" if again else "suspect")


def best_pgd(checks: Sequence[Check]) -> float:
    return max((check.pgd for check in checks), default=0.0)


def explain(
    check: Check, since: Sequence[Check], *, n: int, threat: str, floor: float = 0.0
) -> str:
    """The verdict in words, with its figures."""
    where = f"after batch {check.batch}"
    if check.verdict == "nan":
        return f"nan: the training loss is not finite {where}: lower the learning rate."
    if check.verdict == "stuck":
        return (
            f"stuck: the network answers one class {where} (loss {check.train_loss:.4f}, ln(C) = "
            f"{math.log(check.classes):.4f}): use eps_warmup, or a lower learning rate."
        )
    if check.verdict == "weak":
        return (
            f"weak: {_percent(check.pgd)} under PGD-10 is below the floor of {_percent(floor)} "
            f"(5 restarts, {n} held-out samples, {where}, {threat})."
        )
    return (
        f"collapse: catastrophic overfitting {where}: accuracy on {n} held-out samples is "
        f"{check.clean:.1%} clean, {check.single_step:.1%} under one step, {check.pgd:.1%} under "
        f"PGD-10 (best before {best_pgd(since):.1%}) at {threat}."
    )


def in_short(check: Check) -> str:
    """The verdict in a few words, as a line an epoch has them: "good" only where half of what is
    right is robust, and more than chance."""
    if check.verdict != "good":
        return check.verdict
    if not check.is_warm:
        return "no verdict while eps grows"
    is_robust = check.pgd >= check.clean / 2 and check.pgd > 1 / check.classes
    return "good" if is_robust else "no collapse, but not robust yet"


def in_words(check: Check, history: Sequence[Check], *, threat: str, floor: float = 0.0) -> str:
    """The same, and where it is bad with its figures; history: of all checks, also later ones."""
    if check.verdict in ("good", "suspect"):
        return in_short(check)
    before = [one for one in history if one.batch < check.batch]
    return explain(check, before, n=check.samples, threat=threat, floor=floor)


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
