"""The oracle: loss, prediction and input gradient of a model at the iterates of a slot state."""

from typing import NamedTuple

import torch

from fastadv import losses
from fastadv.engine.state import SlotState
from fastadv.isolation import Model
from fastadv.ops import heads
from fastadv.wrappers import Normalized

_IN_PLACE = "the model modifies its input in place: make its first operation out of place"


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


class Oracle:
    """Forward, loss head, backward to the input: no weight gradients, no synchronisation.

    Must be used inside `isolated(model)`. passes: gradients, and the logits that decide, are
    averaged over as many forward passes (EOT, Athalye et al. 2018, arXiv:1707.07397). forwards and
    backwards count samples times passes. Raises ValueError if the output cannot be attacked.
    """

    def __init__(self, model: Model, loss: losses.Loss, *, targeted: bool, passes: int = 1) -> None:
        self.model = model
        self.loss = loss
        self.targeted = targeted
        self.passes = passes
        self.classes = 0  # known after the first forward
        self.largest_label = -1  # set where a callable loss would see labels before any check
        self.forwards = 0
        self.backwards = 0
        self.discarded: int | torch.Tensor = 0  # forwards of proposals that came too late

    def takes_model_input(self, x: torch.Tensor) -> bool:
        """True if the fused steps can write the model's normalised input themselves."""
        return (
            type(self.model) is Normalized
            and x.ndim >= 2
            and x.dtype in (torch.float32, torch.float64)
            and self.model.mean.device == x.device
            and not any(
                getattr(self.model, f"_{hooks}")
                for hooks in (
                    "forward_hooks",
                    "forward_pre_hooks",
                    "backward_hooks",
                    "backward_pre_hooks",
                )
            )
        )

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C) logits of the user's own model at x, without a gradient; the mean over passes."""
        with torch.no_grad():
            total = self._forward(self.model, x)
            for _ in range(self.passes - 1):
                total = total + self._forward(self.model, x)
        return total / self.passes if self.passes > 1 else total

    def track(self, state: SlotState, logits: torch.Tensor, rules: Rules | None) -> None:
        """Loss, prediction and slot state of `logits`, without a gradient."""
        if self.loss.function is None:
            self._head(logits, state, state.loss, None, self.loss.kind, rules)
            return
        state.loss.copy_(self.custom_loss(logits, state.labels, state.targets))
        self._head(logits, state, state.loss, None, "none", rules)

    def gradient(self, state: SlotState, rules: Rules | None) -> torch.Tensor:
        """The input gradient at the current iterates, which the same launch tracks by `rules`."""
        if self.passes == 1:
            return self._pass(state, state.loss, rules)[0]
        scratch = torch.empty_like(state.loss)
        total, mean_logits = self._pass(state, scratch, None)
        for _ in range(self.passes - 1):
            grad, logits = self._pass(state, scratch, None)
            total, mean_logits = total + grad, mean_logits + logits
        self.track(state, mean_logits / self.passes, rules)
        return total / self.passes

    def _pass(
        self, state: SlotState, loss: torch.Tensor, rules: Rules | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(input gradient, logits) of one forward and backward."""
        logits = self.graph(state)
        if self.loss.function is None:
            grad_logits = grad_buffer(state, logits)
            self._head(logits, state, loss, grad_logits, self.loss.kind, rules)
            return self.backward(logits, state, grad_logits), logits.detach()
        with torch.enable_grad():
            objective = self.custom_loss(logits, state.labels, state.targets)
        if not objective.requires_grad:
            raise ValueError(
                "the loss has no gradient: it is detached, or its value does not depend on the "
                "logits differentiably"
            )
        loss.copy_(objective.detach())
        if rules is not None:
            self._head(logits.detach(), state, loss, None, "none", rules)
        return self.backward(objective, state, torch.ones_like(objective)), logits.detach()

    def _head(
        self, logits: torch.Tensor, state: SlotState, loss: torch.Tensor,
        grad: torch.Tensor | None, kind: str, rules: Rules | None,
    ) -> None:  # fmt: skip
        tracked = (None, None) if rules is None else (state.slots, state.best_loss)
        heads.loss_head_(
            logits, state.labels, state.targets, state.reference, loss, grad,
            state.prediction, state.correct, *tracked, kind, self.loss.parameter,
            *(rules or Rules(0, 0, False, 0, False)),
        )  # fmt: skip

    def graph(self, state: SlotState) -> torch.Tensor:
        """(B, C) logits at the current iterates, with the graph of a backward pass."""
        model = self.model
        if state.model_input is not None:
            assert isinstance(model, Normalized)
            model = model.model
        with torch.enable_grad():
            logits = self._forward(model, state.leaf.requires_grad_())
        if not logits.requires_grad:
            raise ValueError(
                "the model's output has no gradient: it is detached, computed under no_grad, or "
                "made of integers; wrap the part that blocks it in fastadv.BPDA"
            )
        return logits

    def _forward(self, model: Model, x: torch.Tensor) -> torch.Tensor:
        version = x._version
        try:
            logits = model(x)
        except RuntimeError as error:
            if x._version == version and "in-place operation" not in str(error):
                raise
            raise ValueError(_IN_PLACE) from error
        self.forwards += len(x)
        if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or len(logits) != len(x):
            got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
            raise ValueError(
                f"the model must return (B, C) logits, here ({len(x)}, C); got {got}. Wrap it to "
                "return its logits alone"
            )
        if logits.shape[1] != self.classes:
            losses.check_classes(self.loss, logits.shape[1], targeted=self.targeted)
            self.classes = logits.shape[1]
            if self.largest_label >= self.classes:
                raise ValueError(
                    f"y or target must lie in [0, {self.classes}), the classes of the model; got "
                    f"{self.largest_label}"
                )
        if x._version != version:
            raise ValueError(_IN_PLACE)
        return logits

    def backward(
        self, output: torch.Tensor, state: SlotState, grad_output: torch.Tensor | None,
        *, keep_graph: bool = False,
    ) -> torch.Tensor:  # fmt: skip
        """The input gradient of an output of `graph`; keep_graph: another one will follow."""
        (grad,) = torch.autograd.grad(
            output, state.leaf, grad_output, retain_graph=keep_graph, allow_unused=True
        )
        self.backwards += len(state)
        if grad is None:
            raise ValueError(
                "the model's output does not depend on its input (a detached copy?): no gradient "
                "flows to it; wrap the part that blocks it in fastadv.BPDA"
            )
        return grad

    def custom_loss(
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
    if state.grad_logits is None or state.grad_logits.shape != logits.shape:
        state.grad_logits = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    return state.grad_logits
