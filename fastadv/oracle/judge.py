"""What a loss says of logits: its value and gradient, and by its rules the state of the slots."""

from typing import NamedTuple, Protocol

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


class Asked(Protocol):
    """What is asked of the samples whose logits are judged: a `Work` or a `SlotState`."""

    @property
    def labels(self) -> torch.Tensor: ...

    @property
    def targets(self) -> torch.Tensor | None: ...

    @property
    def y(self) -> torch.Tensor | None: ...


class Judged(NamedTuple):
    """Logits, detached, and dL/dlogits of rows whose slots are tracked; (B, C) each."""

    logits: torch.Tensor
    grad_logits: torch.Tensor


class Judge:
    """A loss as an attack ascends it; targeted: towards the target, not away from the label.

    classes: of the model, known after the first output; of an objective 0. largest_label: set where
    a callable loss or an objective would see labels before any check.
    """

    def __init__(self, loss: losses.Loss, *, targeted: bool) -> None:
        self.loss = loss
        self._is_named = loss.is_named
        self.targeted = targeted
        self.classes: int = 0
        self.largest_label = -1

    @property
    def of_logits(self) -> bool:
        """Whether the loss asks for logits: an objective may well be of probabilities."""
        return self.loss.objective is None or self.loss.objective.expects_logits

    def check_output(self, output: torch.Tensor, x: torch.Tensor) -> None:
        """Raises ValueError unless `output`, the model's at x, is what the loss can judge."""
        if self.loss.objective is not None:
            losses.check_rows(output, x)
            self.loss.objective.check_classes(output, self.largest_label)
            return
        losses.check_logits(output, x)
        if output.shape[1] != self.classes:
            losses.check_classes(self.loss, output.shape[1], targeted=self.targeted)
            self.classes = output.shape[1]
            if self.largest_label >= self.classes:
                raise ValueError(
                    f"y or target must lie in [0, {self.classes}), the classes of the model; got "
                    f"{self.largest_label}"
                )

    def readable(self, output: torch.Tensor, y: torch.Tensor | None) -> torch.Tensor:
        """(B, C) logits that say whether a sample is a success: not of its label. They are the
        output itself, but for an objective, whose verdict they are; its labels are 0."""
        if self.loss.objective is None:
            return output
        assert y is not None, "an objective has been given y"
        return self.loss.objective.verdict(output, y)

    def track(self, state: SlotState, logits: torch.Tensor, rules: Rules | None) -> None:
        """Loss, prediction and slot state of `logits`, without a gradient."""
        if self._is_named:
            self._head(logits, state, state.loss, None, self.loss.kind, rules)
            return
        state.loss.copy_(self.custom(logits, state))
        self._head(self.readable(logits, state.y), state, state.loss, None, "none", rules)

    def differentiate(
        self, logits: torch.Tensor, state: SlotState, loss: torch.Tensor, rules: Rules | None
    ) -> torch.Tensor:
        """dL/dlogits; the loss, and by `rules` the slot state, are written on the way."""
        if self._is_named:
            grad_logits = grad_buffer(state, logits)
            self._head(logits, state, loss, grad_logits, self.loss.kind, rules)
            return grad_logits
        leaf = logits.requires_grad_()
        with torch.enable_grad():
            values = self.custom(leaf, state)
        if not values.requires_grad:
            raise ValueError(
                "the loss has no gradient: it is detached, or its value does not depend on the "
                "logits differentiably"
            )
        (grad_logits,) = torch.autograd.grad(values, leaf, torch.ones_like(values))
        loss.copy_(values.detach())
        if rules is not None:
            judged = self.readable(logits.detach(), state.y)
            self._head(judged, state, loss, None, "none", rules)
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

    def custom(self, logits: torch.Tensor, asked: Asked) -> torch.Tensor:
        """The value of a callable loss or an objective: what the attack ascends, (B,)."""
        if self.loss.objective is not None:
            assert asked.y is not None, "an objective has been given y"
            return self.loss.objective.losses(logits, asked.y)
        assert self.loss.function is not None
        rows = self.loss.function(logits, asked.labels if asked.targets is None else asked.targets)
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
