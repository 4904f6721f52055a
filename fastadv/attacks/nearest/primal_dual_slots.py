"""PDGD and PDPGD as a slot algorithm: the weights of distance and loss are a sample's own."""

from dataclasses import dataclass
from typing import cast

import torch

from fastadv.attacks.nearest.slots import NearestSlots, NearestState
from fastadv.elements import common_bounds
from fastadv.engine.state import SlotState, put_rows
from fastadv.engine.work import Work
from fastadv.ops.nearest.primal_dual import DUALS, Course, Pull, primal_dual_step_
from fastadv.oracle.gradient import Oracle
from fastadv.threat_model import ThreatModel


@dataclass
class PrimalDualState(NearestState):
    """mean, square: of Adam, as x. duals: (B, 3), see `primal_dual_step_`."""

    mean: torch.Tensor
    square: torch.Tensor
    duals: torch.Tensor


class PrimalDualSlots(NearestSlots):
    """Adam on the loss, with the distance's gradient or proximal steps; see `fastadv.pdpgd`.

    schedule: of each step, see `fastadv.ops.nearest.primal_dual.schedule`. first: of `duals`.
    pull: what proximal step, None for that of the norm.
    """

    def __init__(
        self,
        oracle: Oracle,
        threat: ThreatModel,
        *,
        course: Course,
        schedule: list[tuple[float, ...]],
        first: tuple[float, ...],
        pull: Pull | None,
        stop_early: bool,
    ) -> None:
        self.oracle = oracle
        self.threat = threat
        self.steps = len(schedule)
        self.course = course
        self.first = first
        self.pull: Pull | None = pull
        self.stop_early = stop_early
        self._rows = schedule
        self._schedule: torch.Tensor | None = None

    def allocate(self, work: Work, batch: int) -> PrimalDualState:
        common = SlotState.empty(work, batch, keep_best=False, momentum=False, model_input=False)
        if self._schedule is None:  # graphs hold its address
            rows = torch.tensor(self._rows, dtype=work.eps.dtype)
            self._schedule = rows.t().contiguous().to(work.x.device)
        return PrimalDualState(
            common=common,
            closest=torch.empty_like(common.x),
            distance=torch.empty_like(common.eps),
            mean=torch.empty_like(common.x, dtype=common.eps.dtype),
            square=torch.empty_like(common.x, dtype=common.eps.dtype),
            duals=common.eps.new_empty(batch, DUALS),
        )

    def start(
        self, state: PrimalDualState, rows: torch.Tensor | None, work: Work, items: torch.Tensor
    ) -> None:
        state.load(rows, work)
        still = torch.zeros_like(work.x, dtype=work.eps.dtype)
        put_rows(state.mean, rows, still)
        put_rows(state.square, rows, still)
        duals = work.eps.new_empty(len(work), DUALS)
        for column, value in enumerate(self.first):
            duals[:, column] = value
        put_rows(state.duals, rows, duals)

    def move(self, state: PrimalDualState, grad: torch.Tensor, aims: torch.Tensor) -> None:
        common = state.common
        primal_dual_step_(
            common.x_adv.detach(),
            state.closest,
            grad,
            common.x,
            mean=state.mean,
            square=state.square,
            loss=common.loss,
            prediction=common.prediction,
            aims=aims,
            distance=state.distance,
            duals=state.duals,
            slots=common.slots,
            eps=common.eps,
            schedule=cast(torch.Tensor, self._schedule),
            course=self.course,
            norm=self.threat.norm,  # type: ignore[arg-type]
            pull=self.pull,
            bounds=common_bounds(self.threat),
            targeted=self.oracle.judge.targeted,
            stop_early=self.stop_early,
        )
