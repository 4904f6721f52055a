"""DDN and FMN as a slot algorithm: a radius that shrinks at adversarial points, else grows."""

import math
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch

from fastadv.attacks.nearest.slots import NearestSlots, NearestState
from fastadv.elements import common_bounds
from fastadv.engine.state import SlotState, put_rows
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
class RadiusState(NearestState):
    """radius: (B,), of the next point; limit: (B,) how far the bounds let any point be."""

    radius: torch.Tensor
    limit: torch.Tensor


class RadiusSlots(NearestSlots):
    """Steps along the gradient, each brought to a radius of its sample's; see `fastadv.ddn` and
    `fastadv.fmn`."""

    def __init__(
        self, oracle: Oracle, threat: ThreatModel, *, moves: Moves, stop_early: bool
    ) -> None:
        self.oracle = oracle
        self.threat = threat
        self.steps = len(moves.schedule)
        self.moves = moves
        self.stop_early = stop_early
        self._schedule: torch.Tensor | None = None

    def allocate(self, work: Work, batch: int) -> RadiusState:
        common = SlotState.empty(work, batch, keep_best=False, momentum=False, model_input=False)
        if self._schedule is None:  # graphs hold its address
            rows = torch.tensor(self.moves.schedule, dtype=work.eps.dtype)
            self._schedule = rows.t().contiguous().to(work.x.device)
        return RadiusState(
            common=common,
            closest=torch.empty_like(common.x),
            distance=torch.empty_like(common.eps),
            radius=torch.empty_like(common.eps),
            limit=torch.empty_like(common.eps),
        )

    def start(
        self, state: RadiusState, rows: torch.Tensor | None, work: Work, items: torch.Tensor
    ) -> None:
        state.load(rows, work)
        put_rows(state.radius, rows, torch.full_like(work.eps, self.moves.first_radius))
        put_rows(state.limit, rows, farthest(work.x, self.threat))

    def move(self, state: RadiusState, grad: torch.Tensor, aims: torch.Tensor) -> None:
        common = state.common
        radius_op.radius_step_(
            common.x_adv.detach(),
            state.closest,
            grad,
            common.x,
            loss=common.loss,
            prediction=common.prediction,
            aims=aims,
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
            targeted=self.oracle.judge.targeted,
            stop_early=self.stop_early,
        )


def farthest(x: torch.Tensor, threat: ThreatModel) -> torch.Tensor:
    """(n,) the largest distance from x in bounds, in the dtype that x is computed in."""
    dtype, bounds = layout.compute_dtype(x), common_bounds(threat)
    if threat.norm == "l0":
        size = math.prod(x.shape[1:])
        return torch.full((len(x),), float(size), dtype=dtype, device=x.device)
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
