"""C&W as a slot algorithm: a distance and a penalty by Adam, round after round of constants."""

from dataclasses import dataclass

import torch

from fastadv.attacks.nearest.slots import NearestSlots, NearestState
from fastadv.elements import common_bounds
from fastadv.engine.state import SlotState, put_rows
from fastadv.engine.work import Work
from fastadv.ops.nearest import penalty as op
from fastadv.ops.nearest.penalty_reference import odds, place
from fastadv.oracle.gradient import Oracle
from fastadv.threat_model import ThreatModel


@dataclass
class PenaltyState(NearestState):
    """shift: the variable, 0 at x. mean, square: Adam's, as x. search: (B, 9), see `cw_step_`."""

    shift: torch.Tensor
    mean: torch.Tensor
    square: torch.Tensor
    search: torch.Tensor


class PenaltySlots(NearestSlots):
    """Rounds of Adam, each with a constant that is the sample's own; see `fastadv.cw`. schedule: of
    each step of a round, see `fastadv.ops.nearest.penalty.schedule`."""

    def __init__(
        self,
        oracle: Oracle,
        threat: ThreatModel,
        *,
        course: op.Course,
        schedule: list[tuple[float, float]],
        constant: float,
        stop_early: bool,
    ) -> None:
        self.oracle = oracle
        self.threat = threat
        self.steps = course.points
        self.course = course
        self.constant = constant
        self.stop_early = stop_early
        self._rows = schedule
        self._schedule: torch.Tensor | None = None

    def allocate(self, work: Work, batch: int) -> PenaltyState:
        common = SlotState.empty(work, batch, keep_best=False, momentum=False, model_input=False)
        if self._schedule is None:  # graphs hold its address
            rows = torch.tensor(self._rows, dtype=work.eps.dtype)
            self._schedule = rows.t().contiguous().to(work.x.device)
        return PenaltyState(
            common=common,
            closest=torch.empty_like(common.x),
            distance=torch.empty_like(common.eps),
            shift=torch.empty_like(common.x, dtype=common.eps.dtype),
            mean=torch.empty_like(common.x, dtype=common.eps.dtype),
            square=torch.empty_like(common.x, dtype=common.eps.dtype),
            search=common.eps.new_empty(batch, op.COLUMNS),
        )

    def start(
        self, state: PenaltyState, rows: torch.Tensor | None, work: Work, items: torch.Tensor
    ) -> None:
        state.load(rows, work)
        clean = work.x.to(work.eps.dtype)
        shift = torch.zeros_like(clean)
        bounds = common_bounds(self.threat)
        if work.x_init is not None:
            start = work.x_init.to(clean.dtype)
            shift = (start - clean) / self.course.unit
            if self.course.squashed and bounds is not None:
                (above, below), (over, under) = (
                    odds(rows, *bounds, self.course.unit) for rows in (clean, start)
                )
                shift = (over / under * (below / above)).log() / 2
        elif self.course.squashed and bounds is not None:
            first = place(clean, shift, *bounds, self.course.unit)[0]
            put_rows(state.common.x_adv, rows, first.to(work.x.dtype))
        put_rows(state.shift, rows, shift)
        for adams in (state.mean, state.square):
            put_rows(adams, rows, torch.zeros_like(clean))
        first_row = work.eps.new_tensor(op.first_search(self.constant))
        put_rows(state.search, rows, first_row.expand(len(work), -1))

    def move(self, state: PenaltyState, grad: torch.Tensor, aims: torch.Tensor) -> None:
        common = state.common
        assert self._schedule is not None, "slots are allocated first"
        # an L2 distance is that of elements which all differ by it over the root of their number
        share = common.x[0].numel() ** -0.5 if self.threat.norm == "l2" else 1.0
        op.cw_step_(
            common.x_adv.detach(),
            state.closest,
            grad,
            common.x,
            shift=state.shift,
            mean=state.mean,
            square=state.square,
            loss=common.loss,
            prediction=common.prediction,
            aims=aims,
            distance=state.distance,
            search=state.search,
            slots=common.slots,
            eps=common.eps,
            schedule=self._schedule,
            course=self.course._replace(relative=self.course.relative * share),
            norm=self.threat.norm,  # type: ignore[arg-type]
            bounds=common_bounds(self.threat),
            targeted=self.oracle.judge.targeted,
            stop_early=self.stop_early,
        )
