"""FAB as a slot algorithm: from boundary to boundary, ever closer to the clean sample."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from fastadv.attacks.call.first_gradient import probe_bounds, probe_masked
from fastadv.attacks.call.settings import Keep
from fastadv.elements import common_bounds, has_radius
from fastadv.engine.state import ExtendedState, SlotState, put_rows
from fastadv.engine.work import Work
from fastadv.ops.fab import step as fab
from fastadv.ops.heads import loss_head as heads
from fastadv.ops.noise.start import Kind, random_start
from fastadv.oracle.gradient import Oracle
from fastadv.oracle.judge import grad_buffer
from fastadv.threat_model import ThreatModel

_START_KINDS: dict[str, Kind] = {"linf": "linf_uniform", "l2": "l2_sphere", "l1": "l1_uniform"}


class Moves(NamedTuple):
    """How FAB moves: the settings of `fastadv.fab` of the same names."""

    alpha_max: float
    eta: float
    beta: float


@dataclass
class BoundaryState(ExtendedState):
    """B slots of FAB. common: what every gradient attack has; x_adv is the point to evaluate.

    closest: the closest adversarial point so far, x while there is none; distance: (B,) its
    distance, inf while there is none. pulled_back: (B,) bool, x_adv is one on its way back to x.
    """

    common: SlotState
    closest: torch.Tensor
    distance: torch.Tensor
    pulled_back: torch.Tensor


class BoundarySlots:
    """Project onto the linearised decision boundary of a target; see `fastadv.fab_t`.

    targets: classes aimed at in turn, each from `restarts` starts; 0: the nearest boundary of all
    classes, which takes C - 1 backward passes a step.
    """

    stride = 4
    needs_last = False  # a slot ends only after its last point has been evaluated

    def __init__(
        self,
        oracle: Oracle,
        threat: ThreatModel,
        *,
        steps: int,
        restarts: int,
        targets: int,
        moves: Moves,
        seed: int,
        keep: Keep,
    ) -> None:
        self.oracle = oracle
        self.threat = threat
        self.steps = steps
        self.restarts = restarts
        self.untargeted: bool = targets == 0
        self.items: int = max(targets, 1) * restarts
        self.moves = moves
        self.seed = seed
        self.keep = keep

    def allocate(self, work: Work, batch: int) -> BoundaryState:
        common = SlotState.empty(work, batch, keep_best=False, momentum=False, model_input=False)
        return BoundaryState(
            common=common,
            closest=torch.empty_like(common.x),
            distance=torch.empty_like(common.eps),
            pulled_back=torch.empty(batch, dtype=torch.bool, device=work.x.device),
        )

    def start(
        self, state: BoundaryState, rows: torch.Tensor | None, work: Work, items: torch.Tensor
    ) -> None:
        work = work.aimed(items // self.restarts)
        start = work.x if work.x_init is None else work.x_init
        if self.restarts > 1:
            random = random_start(
                work.x,
                eps=work.eps / 2,
                seed=self.seed,
                sample_ids=work.sample_ids,
                draw=items,
                kind=_START_KINDS[self.threat.norm],
                bounds=common_bounds(self.threat),
            )
            again = (items % self.restarts > 0).view(-1, *[1] * (work.x.ndim - 1))
            start = torch.where(again, random, start)
        state.common.load(rows, work, start, best=start)
        put_rows(state.closest, rows, work.x)
        put_rows(state.distance, rows, torch.full_like(work.eps, torch.inf))
        put_rows(state.pulled_back, rows, torch.zeros_like(work.eps, dtype=torch.bool))

    def step(self, state: BoundaryState) -> None:
        # Nine of ten points are adversarial and pulled back before the next gradient. So a forward
        # alone first: a backward at a point that is left at once would cost as much again.
        common = state.common
        grad = self._nearest(common) if self.untargeted else self.oracle.gradient(common, None)
        if self.oracle.search is not None:
            common.prediction.copy_(common.labels)  # `_look` has judged it, by the user's model
        if common.unprobed:
            probe_bounds(common, grad, self.oracle)
        self._move(state, grad)
        if common.unprobed:
            probe_masked(common, grad)
        self._look(state)

    def _look(self, state: BoundaryState) -> None:
        """Judge the new points: keep the closest, pull the adversarial ones back."""
        common = state.common
        logits = self.oracle.logits(common.x_adv.detach(), common.extra)
        self.oracle.judge.track(common, logits, None)
        self._move(state, None)

    def _move(self, state: BoundaryState, grad: torch.Tensor | None) -> None:
        common = state.common
        fab.fab_step_(
            common.x_adv.detach(),
            state.closest,
            grad,
            common.x,
            difference=common.loss,
            prediction=common.prediction,
            labels=common.labels,
            distance=state.distance,
            pulled_back=state.pulled_back,
            slots=common.slots,
            eps=common.eps,
            bounds=common_bounds(self.threat),
            norm=self.threat.norm,
            steps=self.steps,
            stop_early=self.keep == "first_success" and has_radius(self.threat),
            **self.moves._asdict(),
        )

    def _nearest(self, state: SlotState) -> torch.Tensor:
        """The gradient of z_j - z_y for the class j whose boundary is nearest; fills the loss."""
        at = self.oracle.differentiable(state)
        output = self.oracle.graph(at)
        logits = output.detach()
        if at is not state:
            logits = self.oracle.search_logits(state.x_adv.detach(), state.extra)
        grad_logits, loss = grad_buffer(state, logits), torch.empty_like(state.loss)
        nearest = torch.zeros_like(state.x)
        ratio = torch.full_like(state.eps, torch.inf)
        last = logits.shape[1] - 1
        for candidate in range(last + 1):
            targets = torch.full_like(state.labels, candidate)
            heads.loss_head_(
                logits,
                state.labels,
                targets,
                None,
                loss,
                grad_logits,
                state.prediction,
                state.correct,
                None,
                None,
                "difference",
                0.0,
                0,
                0,
                False,
                0,
                False,
            )
            grad = self.oracle.backward(output, at, grad_logits, keep_graph=candidate < last)
            fab.fab_nearest_(
                nearest,
                state.loss,
                ratio,
                grad,
                loss,
                state.labels,
                candidate,
                norm=self.threat.norm,
            )
        return nearest

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
        raise AssertionError("every point of FAB is evaluated before its slot ends")

    def outcome(self, state: BoundaryState) -> tuple[torch.Tensor, torch.Tensor]:
        return state.closest, -state.distance
