"""APGD as a slot algorithm in L-infinity and L2: the step size adapts to each slot's progress."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch

from fastadv.attacks.call.first_gradient import probe
from fastadv.attacks.call.settings import Keep
from fastadv.elements import common_bounds
from fastadv.engine.state import ExtendedState, SlotState, put_rows
from fastadv.engine.work import Work
from fastadv.kernels import slots as columns
from fastadv.kernels.apgd import progress as apgd_progress
from fastadv.ops.apgd import l2 as apgd_l2
from fastadv.ops.apgd import linf as apgd
from fastadv.ops.apgd.check import apgd_check_
from fastadv.ops.apgd.schedule import apgd_checkpoints
from fastadv.ops.steps import select
from fastadv.oracle.gradient import Oracle
from fastadv.oracle.judge import Rules
from fastadv.starts import StartKind, start_point
from fastadv.threat_model import ThreatModel

_START_KINDS: dict[str, StartKind] = {"linf": "uniform", "l2": "sphere"}
_STEPS = {"linf": apgd.apgd_linf_step_, "l2": apgd_l2.apgd_l2_step_}


@dataclass
class AutoPGDState(ExtendedState):
    """B slots of APGD. common: what every gradient attack has, x_best included.

    x_previous: the iterate before; grad_best: the gradient at x_best; progress: what the check
    remembers; x_hit: the last misclassified iterate, where it is wanted.
    """

    common: SlotState
    x_previous: torch.Tensor
    grad_best: torch.Tensor
    progress: torch.Tensor
    x_hit: torch.Tensor | None

    @classmethod
    def empty(cls, work: Work, batch: int, *, width: int, keep_hit: bool) -> "AutoPGDState":
        common = SlotState.empty(work, batch, keep_best=True, momentum=False, model_input=False)
        return cls(
            common=common,
            x_previous=torch.empty_like(common.x),
            grad_best=torch.empty_like(common.x),
            progress=common.eps.new_empty(batch, width),
            x_hit=torch.empty_like(common.x) if keep_hit else None,
        )


class Course(NamedTuple):
    """What APGD goes through for a sample: `targets` classes aimed at in turn, each from `restarts`
    starts, `steps` steps from each.

    targets: 0 for none, or the one of `work`. first_step: the first that may be a success.
    """

    steps: int
    restarts: int
    targets: int
    seed: int
    keep: Keep
    first_step: int

    @property
    def items(self) -> int:
        return max(self.targets, 1) * self.restarts

    @property
    def keeps_hits(self) -> bool:
        return self.keep == "authors"

    def rules(self, *, steps: int, first_step: int) -> Rules:
        stops = self.keep == "first_success"
        return Rules(steps, first_step, stops, best_from=0, any_error=self.targets > 0)


class KeepingState(Protocol):
    """What `AscentSlots` asks of a state."""

    common: SlotState
    x_hit: torch.Tensor | None


class AscentSlots(Protocol):
    """How APGD, in whatever norm, begins, goes on, ends, and what it hands over."""

    oracle: Oracle
    threat: ThreatModel
    course: Course
    rules: Rules
    stride: int = 4

    def _drawn_start(self, work: Work, items: torch.Tensor) -> torch.Tensor:
        """The random start of the item of number `items` of each row of `work`."""
        ...

    def _move(self, state: Any, grad: torch.Tensor) -> None:
        """The fused step along the gradient at the iterate."""
        ...

    @property
    def needs_last(self) -> bool:
        return True

    def start(
        self, state: KeepingState, rows: torch.Tensor | None, work: Work, items: torch.Tensor
    ) -> None:
        work = work.aimed(items // self.course.restarts)
        start = self._drawn_start(work, items) if work.x_init is None else work.x_init
        state.common.load(rows, work, start, best=start)
        if state.x_hit is not None:
            put_rows(state.x_hit, rows, start)

    def step(self, state: KeepingState) -> None:
        common = state.common
        grad = self.oracle.gradient(common, self.rules)
        if common.unprobed:
            probe(common, grad, self.oracle)
        self._move(state, grad)

    def variant(self, state: KeepingState) -> Hashable:
        return state.common.unprobed

    def go_on(self, state: KeepingState) -> None:
        state.common.revive()
        with self.oracle.by_own_model():
            self.step(state)

    def renew(self, state: KeepingState) -> None:
        """Loading writes all that a step reads."""

    def evaluate(self, state: KeepingState) -> None:
        common = state.common
        assert common.x_best is not None
        x_adv = common.x_adv.detach()
        logits = self.oracle.logits(x_adv, common.extra)
        self.oracle.judge.track(common, logits, self.rules)
        select.select_rows_(common.x_best, x_adv, common.slots[:, columns.IMPROVED])
        if state.x_hit is not None:
            select.select_rows_(state.x_hit, x_adv, (~common.correct).int())

    def outcome(self, state: KeepingState) -> tuple[torch.Tensor, torch.Tensor]:
        common = state.common
        assert common.x_best is not None and common.best_loss is not None
        if self.course.keep == "best":
            return common.x_best, common.best_loss
        kept = common.x_adv.detach() if state.x_hit is None else state.x_hit
        return kept, common.best_loss


class AutoPGDSlots(AscentSlots):
    """Ascend by momentum steps that halve when the loss stalls; see `fastadv.apgd`."""

    def __init__(self, oracle: Oracle, threat: ThreatModel, course: Course, *, rho: float) -> None:
        self.oracle = oracle
        self.threat = threat
        self.course = course
        self.rho = rho
        self.steps: int = course.steps
        self.items: int = course.items
        self.rules = course.rules(steps=course.steps, first_step=course.first_step)
        self._checkpoints = torch.tensor(apgd_checkpoints(course.steps), dtype=torch.int32)

    def allocate(self, work: Work, batch: int) -> AutoPGDState:
        self._checkpoints = self._checkpoints.to(work.x.device)
        return AutoPGDState.empty(
            work, batch, width=apgd_progress.WIDTH, keep_hit=self.course.keeps_hits
        )

    def _drawn_start(self, work: Work, items: torch.Tensor) -> torch.Tensor:
        return start_point(
            self.threat,
            work.x,
            seed=self.course.seed,
            sample_ids=work.sample_ids,
            draw=items,
            kind=_START_KINDS[self.threat.norm],
            eps=work.eps,
            region=work.region,
        )

    def _move(self, state: AutoPGDState, grad: torch.Tensor) -> None:
        common = state.common
        assert common.best_loss is not None and common.x_best is not None
        apgd_check_(
            state.progress,
            common.step_size,
            common.loss,
            common.best_loss,
            common.slots,
            self._checkpoints,
            rho=self.rho,
        )
        _STEPS[self.threat.norm](
            common.x_adv.detach(),
            state.x_previous,
            common.x_best,
            state.grad_best,
            grad,
            common.x,
            step_size=common.step_size,
            eps=common.eps,
            bounds=common_bounds(self.threat),
            box=common.box,
            slots=common.slots,
            progress=state.progress,
            correct=None if state.x_hit is None else common.correct,
            x_hit=state.x_hit,
        )
