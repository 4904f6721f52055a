"""DDN and FMN as a slot algorithm: a radius that shrinks at adversarial points, else grows."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch

from fastadv.attacks.call.first_gradient import probe_bounds, probe_masked
from fastadv.elements import common_bounds
from fastadv.engine.state import ExtendedState, SlotState, put_rows
from fastadv.engine.work import Work
from fastadv.ops import layout
from fastadv.ops.nearest import radius as radius_op
from fastadv.ops.reduction import tree_sum
from fastadv.oracle.gradient import Oracle
from fastadv.threat_model import ThreatModel


class Moves(NamedTuple):
    """How a point moves: see `fastadv.ops.nearest.radius.radius_step_`.

    schedule: of each step (size, gamma). first_radius: of every sample.
    """

    rule: radius_op.Rule
    schedule: tuple[tuple[float, float], ...]
    first_radius: float
    overshoot: float
    minds_bounds: bool


@dataclass
class NearestState(ExtendedState):
    """B slots of a search for the nearest point. common: what every gradient attack has; x_adv is
    the point to evaluate.

    closest: the closest adversarial point so far, x while there is none; distance: (B,) its
    distance, inf while there is none. radius: (B,), of the next point; limit: (B,) how far the
    bounds let any point be.
    """

    common: SlotState
    closest: torch.Tensor
    distance: torch.Tensor
    radius: torch.Tensor
    limit: torch.Tensor


class RadiusSlots:
    """Steps along the gradient, each brought to a radius of its sample's; see `fastadv.ddn` and
    `fastadv.fmn`. stop_early: a slot is finished with its first point within eps."""

    stride = 4
    needs_last = False  # a slot ends only after its last point has been evaluated
    items = 1

    def __init__(
        self, oracle: Oracle, threat: ThreatModel, *, moves: Moves, stop_early: bool
    ) -> None:
        self.oracle = oracle
        self.threat = threat
        self.steps: int = len(moves.schedule)
        self.moves = moves
        self.stop_early = stop_early
        self._schedule: torch.Tensor | None = None

    def allocate(self, work: Work, batch: int) -> NearestState:
        common = SlotState.empty(work, batch, keep_best=False, momentum=False, model_input=False)
        if self._schedule is None:  # graphs hold its address
            rows = torch.tensor(self.moves.schedule, dtype=work.eps.dtype)
            self._schedule = rows.t().contiguous().to(work.x.device)
        return NearestState(
            common=common,
            closest=torch.empty_like(common.x),
            distance=torch.empty_like(common.eps),
            radius=torch.empty_like(common.eps),
            limit=torch.empty_like(common.eps),
        )

    def start(
        self, state: NearestState, rows: torch.Tensor | None, work: Work, items: torch.Tensor
    ) -> None:
        start = work.x if work.x_init is None else work.x_init
        state.common.load(rows, work, start, best=start)
        put_rows(state.closest, rows, work.x)
        put_rows(state.distance, rows, torch.full_like(work.eps, torch.inf))
        put_rows(state.radius, rows, torch.full_like(work.eps, self.moves.first_radius))
        put_rows(state.limit, rows, farthest(work.x, self.threat))

    def step(self, state: NearestState) -> None:
        common = state.common
        grad = self.oracle.gradient(common, None)
        if self.oracle.search is not None:  # points are judged by the user's model
            logits = self.oracle.logits(common.x_adv.detach(), common.extra)
            self.oracle.judge.track(common, logits, None)
        unprobed = common.unprobed
        if unprobed:
            probe_bounds(common, grad, self.oracle)
        targeted = self.oracle.judge.targeted
        radius_op.radius_step_(
            common.x_adv.detach(),
            state.closest,
            grad,
            common.x,
            loss=common.loss,
            prediction=common.prediction,
            aims=cast(torch.Tensor, common.targets) if targeted else common.labels,
            distance=state.distance,
            radius=state.radius,
            limit=state.limit,
            slots=common.slots,
            eps=common.eps,
            schedule=cast(torch.Tensor, self._schedule),
            overshoot=self.moves.overshoot,
            bounds=common_bounds(self.threat),
            norm=self.threat.norm,  # type: ignore[arg-type]
            rule=self.moves.rule,
            minds_bounds=self.moves.minds_bounds,
            targeted=targeted,
            stop_early=self.stop_early,
        )
        if unprobed:
            probe_masked(common, grad)

    def variant(self, state: NearestState) -> Hashable:
        return state.common.unprobed

    def go_on(self, state: NearestState) -> None:
        """Only of a model that answers twice differently: every point is judged by the model."""
        state.common.revive()
        state.closest.copy_(state.common.x)
        state.distance.fill_(torch.inf)

    def renew(self, state: NearestState) -> None:
        """Loading writes all that a step reads."""

    def evaluate(self, state: NearestState) -> None:
        raise AssertionError("every point is evaluated before its slot ends")

    def outcome(self, state: NearestState) -> tuple[torch.Tensor, torch.Tensor]:
        return state.closest, -state.distance


def farthest(x: torch.Tensor, threat: ThreatModel) -> torch.Tensor:
    """(n,) the largest distance from x in bounds, in the dtype that x is computed in."""
    dtype, bounds = layout.compute_dtype(x), common_bounds(threat)
    if bounds is None:
        return torch.full((len(x),), torch.inf, dtype=dtype, device=x.device)
    lo, hi = bounds
    clean = x.to(dtype)
    room = torch.maximum(clean - lo, hi - clean).reshape(len(x), -1)
    if threat.norm == "linf":
        return room.amax(1)
    if threat.norm == "l1":
        return tree_sum(room)
    return tree_sum(room * room).sqrt()
