"""ALMA as a slot algorithm: the distance plus a penalty on the ratio of logits is minimised."""

from dataclasses import dataclass

import torch

from fastadv.attacks.nearest.slots import NearestSlots, NearestState
from fastadv.elements import common_bounds
from fastadv.engine.state import SlotState, put_rows
from fastadv.engine.work import Work
from fastadv.ops.nearest.lagrangian import MEMORY, Course, alma_step_, first_memory
from fastadv.oracle.gradient import Oracle
from fastadv.threat_model import ThreatModel


@dataclass
class LagrangianState(NearestState):
    """square, momentum: of RMSProp, as x. memory: (B, 5), see `alma_step_`."""

    square: torch.Tensor
    momentum: torch.Tensor
    memory: torch.Tensor


class LagrangianSlots(NearestSlots):
    """RMSProp on the distance plus a penalty whose multipliers are a sample's own; see
    `fastadv.alma`."""

    def __init__(
        self, oracle: Oracle, threat: ThreatModel, *, course: Course, stop_early: bool
    ) -> None:
        self.oracle = oracle
        self.threat = threat
        self.steps = course.steps
        self.course = course
        self._under_way = course._replace(reach=0.0)  # with no sample that was just loaded
        self.stop_early = stop_early

    def allocate(self, work: Work, batch: int) -> LagrangianState:
        common = SlotState.empty(work, batch, keep_best=False, momentum=False, model_input=False)
        return LagrangianState(
            common=common,
            closest=torch.empty_like(common.x),
            distance=torch.empty_like(common.eps),
            square=torch.empty_like(common.x, dtype=common.eps.dtype),
            momentum=torch.empty_like(common.x, dtype=common.eps.dtype),
            memory=common.eps.new_empty(batch, MEMORY),
        )

    def start(
        self, state: LagrangianState, rows: torch.Tensor | None, work: Work, items: torch.Tensor
    ) -> None:
        state.load(rows, work)
        put_rows(state.square, rows, torch.ones_like(work.x, dtype=work.eps.dtype))
        put_rows(state.momentum, rows, torch.zeros_like(work.x, dtype=work.eps.dtype))
        memory = work.eps.new_empty(len(work), MEMORY)
        for column, value in enumerate(first_memory(self.course)):
            memory[:, column] = value
        put_rows(state.memory, rows, memory)

    def move(self, state: LagrangianState, grad: torch.Tensor, aims: torch.Tensor) -> None:
        common = state.common
        alma_step_(
            common.x_adv.detach(),
            state.closest,
            grad,
            common.x,
            square=state.square,
            momentum=state.momentum,
            loss=common.loss,
            prediction=common.prediction,
            aims=aims,
            distance=state.distance,
            memory=state.memory,
            slots=common.slots,
            eps=common.eps,
            course=self.course if common.unprobed else self._under_way,
            bounds=common_bounds(self.threat),
            targeted=self.oracle.judge.targeted,
            stop_early=self.stop_early,
        )
