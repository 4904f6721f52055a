"""Sigma-zero as a slot algorithm: the margin plus a smooth count of entries is minimised."""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from fastadv.attacks.nearest.slots import NearestSlots, NearestState
from fastadv.elements import common_bounds
from fastadv.engine.state import SlotState, put_rows
from fastadv.engine.work import Work
from fastadv.ops.nearest.sparse import sigma_zero_step_
from fastadv.oracle.gradient import Oracle
from fastadv.threat_model import ThreatModel


class Moves(NamedTuple):
    """How a point moves: see `fastadv.ops.nearest.sparse.sigma_zero_step_`.

    schedule: of each step its three numbers. first_threshold: of every sample.
    """

    schedule: tuple[tuple[float, float, float], ...]
    first_threshold: float
    smoothing: float
    unit: float


@dataclass
class SparseState(NearestState):
    """mean, square: Adam's, as x; threshold: (B,)."""

    mean: torch.Tensor
    square: torch.Tensor
    threshold: torch.Tensor


class SparseSlots(NearestSlots):
    """Adam's steps whose small entries are put back; see `fastadv.sigma_zero`."""

    def __init__(
        self, oracle: Oracle, threat: ThreatModel, *, moves: Moves, stop_early: bool
    ) -> None:
        self.oracle = oracle
        self.threat = threat
        self.steps = len(moves.schedule)
        self.moves = moves
        self.stop_early = stop_early
        self._schedule: torch.Tensor | None = None

    def allocate(self, work: Work, batch: int) -> SparseState:
        common = SlotState.empty(work, batch, keep_best=False, momentum=False, model_input=False)
        if self._schedule is None:  # graphs hold its address
            rows = torch.tensor(self.moves.schedule, dtype=work.eps.dtype)
            self._schedule = rows.t().contiguous().to(work.x.device)
        return SparseState(
            common=common,
            closest=torch.empty_like(common.x),
            distance=torch.empty_like(common.eps),
            mean=torch.empty_like(common.x, dtype=common.eps.dtype),
            square=torch.empty_like(common.x, dtype=common.eps.dtype),
            threshold=torch.empty_like(common.eps),
        )

    def start(
        self, state: SparseState, rows: torch.Tensor | None, work: Work, items: torch.Tensor
    ) -> None:
        state.load(rows, work)
        for adams in (state.mean, state.square):
            put_rows(adams, rows, torch.zeros_like(work.x, dtype=work.eps.dtype))
        first = torch.full_like(work.eps, self.moves.first_threshold)
        put_rows(state.threshold, rows, first)

    def move(self, state: SparseState, grad: torch.Tensor, aims: torch.Tensor) -> None:
        common = state.common
        assert self._schedule is not None, "slots are allocated first"
        sigma_zero_step_(
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
            threshold=state.threshold,
            slots=common.slots,
            eps=common.eps,
            schedule=self._schedule,
            unit=self.moves.unit,
            smoothing=self.moves.smoothing,
            bounds=common_bounds(self.threat),
            targeted=self.oracle.judge.targeted,
            stop_early=self.stop_early,
        )
