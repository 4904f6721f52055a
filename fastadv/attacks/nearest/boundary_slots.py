"""DeepFool as a slot algorithm: onto the nearest boundary of a linear model, until beyond one."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from fastadv.attacks.call.first_gradient import probe_bounds, probe_masked
from fastadv.elements import common_bounds
from fastadv.engine.state import ExtendedState, SlotState, put_rows
from fastadv.engine.work import Work
from fastadv.ops.fab.step import fab_nearest_
from fastadv.ops.nearest.deepfool import deepfool_step_
from fastadv.oracle.class_gradients import ClassGradients
from fastadv.oracle.gradient import Oracle
from fastadv.threat_model import ThreatModel


class Moves(NamedTuple):
    """How a point moves: the settings of `fastadv.deepfool` of the same names."""

    overshoot: float
    slack: float
    minds_bounds: bool


@dataclass
class BoundaryState(ExtendedState):
    """B slots of DeepFool. common: what every gradient attack has; x_adv is the point to evaluate.

    closest: the adversarial point found, x while there is none; distance: (B,) its distance, inf
    while there is none.
    """

    common: SlotState
    closest: torch.Tensor
    distance: torch.Tensor


class BoundarySlots:
    """Steps onto the nearest linearised boundary of all classes; see `fastadv.deepfool`."""

    stride = 1  # most slots end within three steps
    needs_last = False  # a slot ends only after its last point has been evaluated
    items = 1

    def __init__(self, oracle: Oracle, threat: ThreatModel, *, steps: int, moves: Moves) -> None:
        self.oracle = oracle
        self.threat = threat
        self.steps = steps
        self.moves = moves
        self.classes: ClassGradients = ClassGradients()

    def allocate(self, work: Work, batch: int) -> BoundaryState:
        common = SlotState.empty(work, batch, keep_best=False, momentum=False, model_input=False)
        return BoundaryState(
            common=common,
            closest=torch.empty_like(common.x),
            distance=torch.empty_like(common.eps),
        )

    def start(
        self, state: BoundaryState, rows: torch.Tensor | None, work: Work, items: torch.Tensor
    ) -> None:
        start = work.x if work.x_init is None else work.x_init
        state.common.load(rows, work, start, best=start)
        put_rows(state.closest, rows, work.x)
        put_rows(state.distance, rows, torch.full_like(work.eps, torch.inf))

    def step(self, state: BoundaryState) -> None:
        common = state.common
        grad, difference = self._nearest(common)
        unprobed = common.unprobed
        if unprobed:
            probe_bounds(common, grad, self.oracle)
        deepfool_step_(
            common.x_adv.detach(),
            state.closest,
            grad,
            common.x,
            difference=difference,
            prediction=common.prediction,
            labels=common.labels,
            distance=state.distance,
            slots=common.slots,
            eps=common.eps,
            steps=self.steps,
            bounds=common_bounds(self.threat),
            norm=self.threat.norm,
            **self.moves._asdict(),
        )
        if unprobed:
            probe_masked(common, grad)

    def _nearest(self, common: SlotState) -> tuple[torch.Tensor, torch.Tensor]:
        """(gradient, value) of z_k - z_y for the class k whose boundary is nearest; judges the
        points, by the user's model."""
        at = self.oracle.differentiable(common)
        output = self.oracle.graph(at)
        logits = output.detach()
        if at is not common:
            logits = self.oracle.search_logits(common.x_adv.detach(), common.extra)
        own = logits
        if self.oracle.search is not None:
            own = self.oracle.logits(common.x_adv.detach(), common.extra)
        self.oracle.judge.track(common, own, None)
        others, weights = _of_others(output.detach(), common.labels)
        values = logits.gather(1, others.t()) - logits.gather(1, common.labels[:, None])
        values = values.to(common.loss.dtype)
        nearest = torch.zeros_like(common.x)
        difference = torch.full_like(common.loss, torch.nan)
        ratio = torch.full_like(common.eps, torch.inf)
        for k, grad in enumerate(self.classes.of(self.oracle, output, at, weights)):
            value = values[:, k].contiguous()
            fab_nearest_(
                nearest,
                difference,
                ratio,
                grad,
                value,
                common.labels,
                -1,  # no row's label: a class of its own for each
                norm=self.threat.norm,
            )
        return nearest, difference

    def variant(self, state: BoundaryState) -> Hashable:
        return state.common.unprobed

    def go_on(self, state: BoundaryState) -> None:
        """Only of a model that answers twice differently: every point is judged by the model."""
        state.common.revive()
        state.closest.copy_(state.common.x)
        state.distance.fill_(torch.inf)

    def renew(self, state: BoundaryState) -> None:
        """Loading writes all that a step reads."""

    def evaluate(self, state: BoundaryState) -> None:
        raise AssertionError("every point is evaluated before its slot ends")

    def outcome(self, state: BoundaryState) -> tuple[torch.Tensor, torch.Tensor]:
        return state.closest, -state.distance


def _of_others(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """((C - 1, B) classes that are not the label, in ascending order; (C - 1, B, C) the gradients
    of their differences from it)."""
    places = torch.arange(logits.shape[1] - 1, device=logits.device)[:, None]
    others = places + (places >= labels)
    weights = logits.new_zeros(len(places), *logits.shape)
    weights.scatter_(2, others[:, :, None], 1.0)
    weights.scatter_(2, labels.expand_as(others)[:, :, None], -1.0)
    return others, weights
