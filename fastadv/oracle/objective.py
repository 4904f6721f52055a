"""What a loss says of logits: its value and gradient, and by its rules the state of the slots."""

from typing import NamedTuple

import torch

from fastadv import losses
from fastadv.engine.state import SlotState
from fastadv.ops.heads import loss_head as heads
from fastadv.ops.heads.arguments import Kind


class Rules(NamedTuple):
    """When a slot is finished: after `steps`, or at a success not before `first_step`.

    best_from: the first step whose iterate may be the best one. any_error: with targets, any
    misclassification is a success, not the target alone.
    """

    steps: int
    first_step: int
    stop_early: bool
    best_from: int
    any_error: bool


class Objective:
    """A loss as an attack ascends it; targeted: towards the target, not away from the label."""

    def __init__(self, loss: losses.Loss, *, targeted: bool) -> None:
        self.loss = loss
        self.targeted = targeted

    def check_classes(self, classes: int) -> None:
        losses.check_classes(self.loss, classes, targeted=self.targeted)

    def track(self, state: SlotState, logits: torch.Tensor, rules: Rules | None) -> None:
        """Loss, prediction and slot state of `logits`, without a gradient."""
        if self.loss.function is None:
            self._head(logits, state, state.loss, None, self.loss.kind, rules)
            return
        state.loss.copy_(self.custom(logits, state.labels, state.targets))
        self._head(logits, state, state.loss, None, "none", rules)

    def judge(
        self, logits: torch.Tensor, state: SlotState, loss: torch.Tensor, rules: Rules | None
    ) -> torch.Tensor:
        """dL/dlogits; the loss, and by `rules` the slot state, are written on the way."""
        if self.loss.function is None:
            grad_logits = grad_buffer(state, logits)
            self._head(logits, state, loss, grad_logits, self.loss.kind, rules)
            return grad_logits
        leaf = logits.requires_grad_()
        with torch.enable_grad():
            objective = self.custom(leaf, state.labels, state.targets)
        if not objective.requires_grad:
            raise ValueError(
                "the loss has no gradient: it is detached, or its value does not depend on the "
                "logits differentiably"
            )
        (grad_logits,) = torch.autograd.grad(objective, leaf, torch.ones_like(objective))
        loss.copy_(objective.detach())
        if rules is not None:
            self._head(logits.detach(), state, loss, None, "none", rules)
        return grad_logits

    def _head(
        self,
        logits: torch.Tensor,
        state: SlotState,
        loss: torch.Tensor,
        grad: torch.Tensor | None,
        kind: Kind,
        rules: Rules | None,
    ) -> None:
        tracked = (None, None) if rules is None else (state.slots, state.best_loss)
        heads.loss_head_(
            logits,
            state.labels,
            state.targets,
            state.reference,
            loss,
            grad,
            state.prediction,
            state.correct,
            *tracked,
            kind,
            self.loss.parameter,
            *(rules or Rules(0, 0, False, 0, False)),
        )

    def custom(
        self, logits: torch.Tensor, labels: torch.Tensor, targets: torch.Tensor | None
    ) -> torch.Tensor:
        """The objective of a callable loss: what the attack ascends, (B,)."""
        assert self.loss.function is not None
        rows = self.loss.function(logits, labels if targets is None else targets)
        if not isinstance(rows, torch.Tensor) or rows.shape != logits.shape[:1]:
            got = tuple(rows.shape) if isinstance(rows, torch.Tensor) else type(rows).__name__
            raise ValueError(
                f"loss must map (logits, y) to one value a sample, ({len(logits)},); got {got}. "
                "Use reduction='none'"
            )
        return -rows if self.targeted else rows


def grad_buffer(state: SlotState, logits: torch.Tensor) -> torch.Tensor:
    """The buffer of dL/dlogits, made once the shape and dtype of the logits are known."""
    buffer = state.grad_logits
    if buffer is None or (buffer.shape, buffer.dtype) != (logits.shape, logits.dtype):
        buffer = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
        state.grad_logits = buffer
    return buffer
