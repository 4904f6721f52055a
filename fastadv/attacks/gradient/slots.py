"""Projected gradient ascent as a slot algorithm: FGSM, BIM, PGD and MI-FGSM are cases of it."""

from collections.abc import Hashable
from typing import Any, Literal, NamedTuple

import torch

from fastadv.attacks.call.first_gradient import probe
from fastadv.attacks.call.settings import Keep
from fastadv.elements import common_bounds
from fastadv.engine.state import SlotState
from fastadv.engine.work import Work
from fastadv.kernels import box as planes
from fastadv.kernels import slots as columns
from fastadv.ops.noise import start
from fastadv.ops.steps import arguments as step_arguments
from fastadv.ops.steps import linf, select
from fastadv.oracle.gradient import Oracle
from fastadv.oracle.judge import Rules
from fastadv.starts import StartKind, start_point
from fastadv.threat_model import Linf, ThreatModel

RandomStart = StartKind | Literal["sign"]


class Begin(NamedTuple):
    """Where restarts begin. kind: of the random start, None for x itself. clamps: into bounds."""

    kind: RandomStart | None
    clamps: bool
    seed: int


class ProjectedGradient:
    """Ascend the loss by fused steps from a start point; see `fastadv.pgd` for the arguments."""

    stride = 4

    def __init__(
        self,
        oracle: Oracle,
        threat: ThreatModel,
        *,
        steps: int,
        restarts: int,
        begin: Begin,
        keep: Keep,
        first_step: int,
        momentum_decay: float | None,
        step_options: dict[str, Any],
    ) -> None:
        self.oracle = oracle
        self.threat = threat
        self.steps = steps
        self.items = restarts
        self.begin = begin
        self.momentum_decay = momentum_decay
        stops = keep == "first_success"
        self.rules: Rules = Rules(steps, first_step, stops, best_from=first_step, any_error=False)
        self.keep_best: bool = keep == "best"
        self.step_options = step_options

    @property
    def needs_last(self) -> bool:
        return self.items > 1 or self.keep_best

    def allocate(self, work: Work, batch: int) -> SlotState:
        state = SlotState.empty(
            work,
            batch,
            keep_best=self.keep_best,
            momentum=self.momentum_decay is not None,
            model_input=self.oracle.takes_model_input(work.x),
        )
        if state.box is not None and "sparsity" in self.step_options:
            state.sparsity = torch.empty_like(state.eps)
        return state

    def loaded(self, work: Work, items: torch.Tensor) -> SlotState:
        """A state of all of `work`, whose tensors it may share: nothing else is loaded into it."""
        if self.keep_best:
            state = self.allocate(work, len(work))
            self.start(state, None, work, items)
            return state
        state = SlotState.sharing(
            work,
            self._start_iterates(work, items),
            momentum=self.momentum_decay is not None,
            model_input=self.oracle.takes_model_input(work.x),
        )
        if state.box is not None and "sparsity" in self.step_options:
            state.sparsity = torch.empty_like(state.eps)
        self._complete(state)
        return state

    def start(
        self, state: SlotState, rows: torch.Tensor | None, work: Work, items: torch.Tensor
    ) -> None:
        start = self._start_iterates(work, items)
        # a start that may not be returned is not the best iterate either
        state.load(rows, work, start, best=work.x if self.rules.first_step else start)
        self._complete(state)

    def _complete(self, state: SlotState) -> None:
        """What follows from iterates and boxes that have been loaded."""
        if state.sparsity is not None and state.box is not None:
            moving = (state.box[:, planes.UNIT] > 0).to(state.sparsity.dtype)
            # a share of the elements that may move: the others do not exist
            state.sparsity.copy_(moving.mean(1) * self.step_options["sparsity"])
        if state.model_input is not None:
            normalised = self.oracle.model.normalize(state.x_adv.detach())  # type: ignore[union-attr]
            with torch.no_grad():
                state.model_input.copy_(normalised)

    def _start_iterates(self, work: Work, restarts: torch.Tensor) -> torch.Tensor:
        if work.x_init is not None:
            return work.x_init
        if self.begin.kind is None:
            return work.x
        if self.begin.kind == "sign":
            return self._sign_start(work, restarts)
        return start_point(
            self.threat,
            work.x,
            seed=self.begin.seed,
            sample_ids=work.sample_ids,
            draw=restarts,
            kind=self.begin.kind,
            clamp_start=self.begin.clamps,
            eps=work.eps,
            region=work.region,
        )

    def _sign_start(self, work: Work, restarts: torch.Tensor) -> torch.Tensor:
        """x + step_size * (a random sign for each element), in the ball (R-FGSM)."""
        noise = start.random_start(
            torch.zeros_like(work.x),
            eps=1.0,
            seed=self.begin.seed,
            sample_ids=work.sample_ids,
            draw=restarts,
            kind="linf_uniform",
            bounds=None,
        )
        if work.region is not None:
            moved = step_arguments.dense_copy(work.x)
            box = work.region.box(work.x, work.eps, like=moved, clamps=self.begin.clamps)
            return self.threat.step_(
                moved, noise, work.x, step_size=work.step_size, eps=work.eps, box=box
            )
        bounds = common_bounds(self.threat) if self.begin.clamps else None
        return linf.linf_step(
            work.x, noise, work.x, step_size=work.step_size, eps=work.eps, bounds=bounds
        )

    def step(self, state: SlotState) -> None:
        grad = self.oracle.gradient(state, self.rules)
        if state.unprobed:
            probe(state, grad, self.oracle)
        if state.x_best is not None:
            select.select_rows_(state.x_best, state.x_adv, state.slots[:, columns.IMPROVED])
        self._move(state, grad)

    def _move(self, state: SlotState, grad: torch.Tensor) -> None:
        options = dict(self.step_options)
        if state.sparsity is not None:
            options["sparsity"] = state.sparsity
        if state.momentum is not None:
            options.update(momentum=state.momentum, decay=self.momentum_decay)
        if state.model_input is not None:
            model = self.oracle.model
            options.update(model_input=state.model_input, mean=model.mean, std=model.std)  # type: ignore[union-attr]
        self.threat.step_(
            state.x_adv,
            grad,
            state.x,
            step_size=state.step_size,
            eps=state.eps,
            box=state.box,
            slots=state.slots,
            **options,
        )

    def variant(self, state: SlotState) -> Hashable:
        return state.unprobed

    def go_on(self, state: SlotState) -> None:
        state.revive()
        with self.oracle.by_own_model():
            self.step(state)

    def renew(self, state: SlotState) -> None:
        """Loading writes all that a step reads."""

    def evaluate(self, state: SlotState) -> None:
        logits = self.oracle.logits(state.x_adv.detach(), state.extra)
        self.oracle.judge.track(state, logits, self.rules)
        if state.x_best is not None:
            select.select_rows_(state.x_best, state.x_adv, state.slots[:, columns.IMPROVED])

    def outcome(self, state: SlotState) -> tuple[torch.Tensor, torch.Tensor]:
        if state.x_best is not None and state.best_loss is not None:
            return state.x_best, state.best_loss
        return state.x_adv.detach(), state.loss


def start_kinds(threat: ThreatModel) -> tuple[RandomStart, ...]:
    """The random starts of a threat model; the first is the default."""
    if isinstance(threat, Linf):
        return ("uniform", "gaussian", "sign")
    others = {"l2": ("uniform", "sphere", "gaussian"), "l1": ("uniform", "gaussian")}
    return others.get(threat.norm, ("uniform",))
