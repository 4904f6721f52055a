"""Attacks at several radii, block by block: what one radius decides, no other asks again."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch

from fastadv import diagnostics
from fastadv.attacks import Attack, AttackResult
from fastadv.attacks.argument import check_attack
from fastadv.attacks.call import inputs
from fastadv.containment import contains
from fastadv.engine import looks
from fastadv.ensemble import checks
from fastadv.ensemble.constructor import AutoAttack
from fastadv.evaluation.block import check_extra, collected, gains_of_square
from fastadv.evaluation.display import Status, Watch
from fastadv.evaluation.held import unsized
from fastadv.evaluation.question import Question
from fastadv.evaluation.samples import Rows
from fastadv.evaluation.state import added_counts
from fastadv.execution import Execution
from fastadv.isolation import Model

_OF_THE_RADIUS = ("zero_radius", "small_radius")  # small ones are what a curve is about
_OF_ALL_SAMPLES = ("square_gains", "clamped_input")  # counted at the end

A = TypeVar("A", bound=Attack | AutoAttack)


def at_radius(attack: A, eps: float) -> A:
    """A copy of an attack, or of an ensemble with all of its attacks, with another radius.

    A step_size of None is a share of eps and follows it; an explicit one stays as it is.
    """
    check_attack(attack, "threat", "__dataclass_fields__")
    more: dict[str, Any] = {}
    if isinstance(attack, AutoAttack):
        more["attacks"] = tuple(at_radius(one, eps) for one in attack.attacks)
    return replace(attack, threat=replace(attack.threat, eps=eps), **more)  # type: ignore[type-var]


class AtRadii:
    """One block after another, at all radii; attacks: of ascending radii. is_sized: as of
    `Task`."""

    def __init__(
        self,
        model: Model,
        attacks: Sequence[Attack | AutoAttack],
        execution: Execution,
        device: torch.device | None,
        *,
        is_sized: bool,
    ) -> None:
        self.model = model
        self.attacks = attacks
        self.question: Question = Question.of(attacks[-1])
        self.execution = execution
        self.device = device
        self.is_sized = is_sized
        self.done: int = 0
        self.clean_correct: list[torch.Tensor] = []
        self.robust: list[torch.Tensor] = []
        self.attacked: list[int] = [0] * len(attacks)
        self.forwards: list[int] = [0] * len(attacks)
        self.backwards: list[int] = [0] * len(attacks)
        self.gains: list[checks.Gains] = [checks.Gains()] * len(attacks)
        self.warnings: dict[str, int] = {}
        self.is_mended: bool = False  # gradients are taken inside the bounds

    def attack_block(self, block: Rows, watch: Watch, expected: int | None) -> None:
        block = block.to(self.device)
        with collected() as counts:
            x = inputs.check_inside(block.x, self.attacks[-1].threat)
        self.warnings = added_counts(self.warnings, counts())
        block = block._replace(x=x)
        robust = torch.zeros(len(x), len(self.attacks), dtype=torch.bool, device=x.device)
        survived = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        # the smallest radius at which a sample is known to be broken
        known = torch.full((len(x),), len(self.attacks), device=x.device)
        clean = torch.ones(len(x), dtype=torch.bool, device=x.device)
        for k in reversed(range(len(self.attacks))):
            rows = (~survived & (known > k)).nonzero()[:, 0]
            if len(rows) == 0:
                continue
            eps = float(self.attacks[k].threat.eps)
            running = f"eps {eps:.4g}", len(rows)
            first = len(x) * (len(self.attacks) - 1 - k) / len(self.attacks)  # as if all were alike
            status = Status(self.done, expected, self._robust(), *running, first)
            watch(status)
            with looks.heard_by(_within(status, len(x) / len(self.attacks), watch)):
                result = self._attack(k, block, rows)
            if k == len(self.attacks) - 1:
                prediction = self._clean_prediction(block, result)
                clean = self.question.are_right(prediction, block.y)
                known[~clean] = 0
            left = rows[~result.success & clean[rows]]
            survived[left] = True
            robust[left, : k + 1] = True
            for smaller in reversed(range(k + 1)):
                within = contains(self.attacks[smaller].threat, result.x_adv, x[rows])
                own = rows[result.success & within]
                known[own] = known[own].clamp(max=smaller)
        self.robust.append(robust.cpu())
        self.clean_correct.append(clean.cpu())
        self.done += len(x)
        watch(Status(self.done, expected, self._robust(), "", 0))

    def finish(self, watch: Watch, expected: int | None) -> None:
        """Nothing is left: so many samples there were."""
        if expected != self.done:
            watch(Status(self.done, self.done, self._robust(), "", 0))

    def _attack(self, k: int, block: Rows, rows: torch.Tensor) -> AttackResult:
        x, y, *extra = (column[rows] for column in block.columns[1:])
        execution = self.execution
        if not self.is_sized:
            execution = unsized(execution, self.attacks[k], self.model, x)
        more: dict[str, Any] = dict(execution=execution)
        if extra:
            check_extra(self.attacks[k], len(extra))
            more["extra"] = extra
        with collected() as counts, diagnostics.without(*_OF_THE_RADIUS):
            sample_ids = block.ids.to(rows.device)[rows]
            result = self.attacks[k].run(self.model, x, y, sample_ids=sample_ids, **more)
        if result.inset and self.execution.inset is None:  # holds for all attacks on this model
            self.execution, self.is_mended = replace(self.execution, inset=result.inset), True
        found = {code: n for code, n in counts().items() if code not in _OF_ALL_SAMPLES}
        self.warnings = added_counts(self.warnings, found)
        self.attacked[k] += len(x)
        self.forwards[k] += result.forwards
        self.backwards[k] += result.backwards
        self.gains[k] = self.gains[k].plus(gains_of_square(self.attacks[k], result.stages))
        return result

    def _clean_prediction(self, block: Rows, result: AttackResult) -> torch.Tensor:
        if result.clean_prediction is not None:
            return result.clean_prediction
        n = len(block.x)
        self.forwards[-1] += n  # keep="last" never looks at the clean samples
        size = self.execution.batch_size or n
        found = self.question.answers(self.model, block, batch_size=size)
        return found.prediction.to(block.x.device)

    def _robust(self) -> int:
        """How many samples so far are robust at the largest radius."""
        return sum(int(block[:, -1].sum()) for block in self.robust)

    def all_warnings(self) -> dict[str, int]:
        """With those of all samples; "square_gains" of the radius where it is largest."""
        with collected() as counts:
            checks.warn_of_square(max(self.gains, key=lambda own: own.in_all), self.done)
        mended = {"clamped_input": self.done} if self.is_mended else {}
        return added_counts(self.warnings, counts() | mended)


def _within(status: Status, width: float, watch: Watch) -> looks.Listener:
    """Shows how far an attack is that is worth `width` samples and begins at `status`."""
    furthest = 0.0

    def heard(look: looks.Look) -> None:
        nonlocal furthest
        furthest = max(furthest, look.share)
        watch(status._replace(under_way=status.under_way + width * furthest))

    return heard
