"""APGD in L1 as a slot algorithm: the sparsity of the step follows the best perturbation's."""

from dataclasses import dataclass

import torch

from fastadv.attacks.auto_pgd.slots import AscentSlots, Course
from fastadv.elements import common_bounds
from fastadv.engine.state import ExtendedState, SlotState
from fastadv.engine.work import Work
from fastadv.ops.apgd.l1 import apgd_l1_step_
from fastadv.ops.apgd.schedule import GIVEN_START, RANDOM_START, apgd_l1_plan
from fastadv.ops.noise.start import random_start
from fastadv.oracle.gradient import Oracle
from fastadv.threat_model import ThreatModel


@dataclass
class AutoPGDL1State(ExtendedState):
    """B slots of L1-APGD. common: what every gradient attack has, x_best included.

    grad_best: the gradient at x_best. sparsity, phase_eps, support: (B,), kept by the step. x_hit:
    the last misclassified iterate, where it is wanted.
    """

    common: SlotState
    grad_best: torch.Tensor
    sparsity: torch.Tensor
    phase_eps: torch.Tensor
    support: torch.Tensor
    x_hit: torch.Tensor | None


class AutoPGDL1Slots(AscentSlots):
    """Sparse sign steps that adapt to each slot's progress; see `fastadv.apgd`."""

    def __init__(
        self, oracle: Oracle, threat: ThreatModel, course: Course, *, large_radii: bool
    ) -> None:
        self.oracle = oracle
        self.threat = threat
        self.course = course
        plan, radius = apgd_l1_plan(course.steps, large_radii=large_radii)
        self.steps: int = len(plan) - 1  # moves, and projections between phases
        self.items: int = course.items
        self.first_radius: float = radius[0]
        last_phase = max(t for t, entry in enumerate(plan) if entry in (GIVEN_START, RANDOM_START))
        self.rules = course.rules(steps=self.steps, first_step=max(course.first_step, last_phase))
        self._plan = torch.tensor(plan, dtype=torch.int32)
        self._radius = torch.tensor(radius)

    def allocate(self, work: Work, batch: int) -> AutoPGDL1State:
        self._plan, self._radius = self._plan.to(work.x.device), self._radius.to(work.x.device)
        common = SlotState.empty(work, batch, keep_best=True, momentum=False, model_input=False)
        return AutoPGDL1State(
            common=common,
            grad_best=torch.empty_like(common.x),
            # a slot whose start fools the model never sets them, and the step asks for numbers
            sparsity=torch.zeros_like(common.eps),
            phase_eps=torch.zeros_like(common.eps),
            support=torch.zeros_like(common.eps),
            x_hit=torch.empty_like(common.x) if self.course.keeps_hits else None,
        )

    def _drawn_start(self, work: Work, items: torch.Tensor) -> torch.Tensor:
        return random_start(
            work.x,
            eps=work.eps * self.first_radius,
            seed=self.course.seed,
            sample_ids=work.sample_ids,
            draw=items,
            kind="l1_gaussian",
            bounds=common_bounds(self.threat),
            scale=1.0,
        )

    def _move(self, state: AutoPGDL1State, grad: torch.Tensor) -> None:
        common = state.common
        assert common.best_loss is not None and common.x_best is not None
        apgd_l1_step_(
            common.x_adv.detach(),
            common.x_best,
            state.grad_best,
            grad,
            common.x,
            step_size=common.step_size,
            sparsity=state.sparsity,
            phase_eps=state.phase_eps,
            support=state.support,
            eps=common.eps,
            bounds=common_bounds(self.threat),
            best_loss=common.best_loss,
            slots=common.slots,
            plan=self._plan,
            radius=self._radius,
            correct=None if state.x_hit is None else common.correct,
            x_hit=state.x_hit,
        )
