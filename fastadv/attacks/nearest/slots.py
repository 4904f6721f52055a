"""How a search for the nearest adversarial point begins, looks and ends, whatever its steps."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch

from fastadv.attacks.call.first_gradient import probe_bounds, probe_masked
from fastadv.engine.state import ExtendedState, SlotState, put_rows
from fastadv.engine.work import Work
from fastadv.oracle.gradient import Oracle
from fastadv.threat_model import ThreatModel


@dataclass
class NearestState(ExtendedState):
    """B slots of a search for the nearest point. common: what every gradient attack has; x_adv is
    the point to evaluate.

    closest: the closest adversarial point so far, x while there is none; distance: (B,) its
    distance, inf while there is none.
    """

    common: SlotState
    closest: torch.Tensor
    distance: torch.Tensor

    def load(self, rows: torch.Tensor | None, work: Work) -> None:
        """Put `work` and its start points into `rows`, or into all slots (None)."""
        start = work.x if work.x_init is None else work.x_init
        self.common.load(rows, work, start, best=start)
        put_rows(self.closest, rows, work.x)
        put_rows(self.distance, rows, torch.full_like(work.eps, torch.inf))


class NearestSlots(Protocol):
    """What such searches share. stop_early: a slot is finished with its first point within eps."""

    oracle: Oracle
    threat: ThreatModel
    steps: int
    stop_early: bool
    stride: int = 4
    items: int = 1

    def move(self, state: Any, grad: torch.Tensor, aims: torch.Tensor) -> None:
        """Judge the points just evaluated and make the next ones: the fused step. aims: the classes
        to reach or to leave."""
        ...

    @property
    def needs_last(self) -> bool:
        return False  # a slot ends only after its last point has been evaluated

    def step(self, state: Any) -> None:
        common = state.common
        grad = self.oracle.gradient(common, None)
        if self.oracle.search is not None:  # points are judged by the user's model
            logits = self.oracle.logits(common.x_adv.detach(), common.extra)
            self.oracle.judge.track(common, logits, None)
        unprobed = common.unprobed
        if unprobed:
            probe_bounds(common, grad, self.oracle)
        targeted = self.oracle.judge.targeted
        self.move(state, grad, cast(torch.Tensor, common.targets) if targeted else common.labels)
        if unprobed:
            probe_masked(common, grad)

    def variant(self, state: Any) -> Hashable:
        return state.common.unprobed

    def go_on(self, state: Any) -> None:
        """Only of a model that answers twice differently: every point is judged by the model."""
        state.common.revive()
        state.closest.copy_(state.common.x)
        state.distance.fill_(torch.inf)

    def renew(self, state: Any) -> None:
        """Loading writes all that a step reads."""

    def evaluate(self, state: Any) -> None:
        raise AssertionError("every point is evaluated before its slot ends")

    def outcome(self, state: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return state.closest, -state.distance
