"""The oracle: loss, prediction and input gradient of a model at the iterates of a slot state."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from fastadv import diagnostics, losses, memory, outputs, reach, recorded
from fastadv.engine.state import SlotState
from fastadv.engine.work import Extra
from fastadv.isolation import Model
from fastadv.kernels import slots as columns
from fastadv.oracle import clamping, pass_size
from fastadv.oracle.backward import input_gradient
from fastadv.oracle.judge import Judge, Judged, Rules
from fastadv.oracle.shadow.search_model import SearchModel
from fastadv.wrappers import Normalized

UNLIMITED = 2**62


class Oracle:
    """Forward, loss head, backward to the input: no weight gradients, no synchronisation.

    Must be used inside `isolated(model)`. passes: gradients, and the logits that decide, are
    averaged over as many forward passes (EOT, Athalye et al. 2018, arXiv:1707.07397). bounds: of
    the pixels. inset: by how much entries at them are moved inside wherever the model is
    differentiated, 0.0 if it keeps its gradient there: see `fastadv.oracle.clamping`. search: what
    is differentiated in place of the model, None for the model itself. forwards and backwards count
    samples times passes, own_forwards and own_backwards those of the model itself; seconds is the
    host's time in them. room: the most rows of a pass, halved when memory runs out: then the rows
    are passed in parts, and none twice. fast: the most that are fast, which the first pass finds
    out where `is_sizing`. Raises ValueError if the output cannot be attacked.
    """

    def __init__(
        self,
        model: Model,
        loss: losses.Loss,
        *,
        targeted: bool,
        passes: int = 1,
        bounds: clamping.Bounds | None = None,
        inset: float = 0.0,
    ) -> None:
        self.model = model
        self.bounds = bounds
        self.inset: float = inset
        self.search: SearchModel | None = None
        self.judge: Judge = Judge(loss, targeted=targeted)
        self.passes = passes
        self.room: int = UNLIMITED
        self.fast: int = UNLIMITED
        self.is_sizing: bool = False
        self.first: torch.Tensor | None = None  # logits of the first forward, detached
        self.whole: int = 0  # rows of the first forward, or of a batch that rows were dropped from
        self.is_recorded: bool = False  # whether steps may be: then the host decides nothing
        # whether a part was recorded in train mode, as `isolated` says; None: to be looked at
        self.is_left_in_training: bool | None = None
        self.forwards: int = 0
        self.backwards: int = 0
        self.own_forwards: int = 0
        self.own_backwards: int = 0
        self.seconds: float = 0.0
        self.discarded: int | torch.Tensor = 0  # forwards of proposals that came too late

    def rows_of(self, count: int) -> int:
        """Rows of each pass over `count` of them: all, or parts as equal as can be."""
        parts = -(-count // min(self.room, self.fast))
        return -(-count // max(1, parts))

    def read(self) -> tuple[int, ...]:
        """The counts that a replayed step must repeat, for `fastadv.graphs`."""
        return self.forwards, self.backwards, self.own_forwards, self.own_backwards

    def write(self, values: tuple[int, ...]) -> None:
        self.forwards, self.backwards, self.own_forwards, self.own_backwards = values

    def buffers(self) -> dict[str, torch.Tensor]:
        """What a pass may change in the models that are asked, if they keep anything."""
        model = self.model if self.search is None else self.search.model
        return {f"the model's {name}": b for name, b in reach.named_buffers(model).items()}

    @contextlib.contextmanager
    def by_own_model(self) -> Iterator[None]:
        """Inside, the user's model is differentiated itself."""
        search, self.search = self.search, None
        try:
            yield
        finally:
            self.search = search

    def takes_model_input(self, x: torch.Tensor) -> bool:
        """True if the fused steps can write the model's normalised input themselves."""
        return (
            not self.inset and isinstance(self.model, Normalized) and self.model.may_be_bypassed(x)
        )

    def logits(self, x: torch.Tensor, extra: Extra = ()) -> torch.Tensor:
        """(B, C) logits of the user's own model at x, without a gradient; the mean over passes."""
        before = self.forwards
        try:
            return self._plain_logits(self.model, x, extra)
        finally:
            self.own_forwards += self.forwards - before

    def search_logits(self, x: torch.Tensor, extra: Extra = ()) -> torch.Tensor:
        """The same of the model that is searched."""
        if self.search is None:
            return self.logits(x, extra)
        return self._plain_logits(self.search.forward, x, extra)

    def _plain_logits(self, model: Model, x: torch.Tensor, extra: Extra) -> torch.Tensor:
        size = self.rows_of(len(x))
        if len(x) <= size:
            return self._mean_logits(model, x, extra)
        parts = zip(*(rows.split(size) for rows in (x, *extra)), strict=True)
        return torch.cat([self._mean_logits(model, part, more) for part, *more in parts])

    def _mean_logits(
        self, model: Model, x: torch.Tensor, extra: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        try:
            with torch.no_grad():
                total = self._forward(model, x, extra)
                for _ in range(self.passes - 1):
                    total = total + self._forward(model, x, extra)
            return total / self.passes if self.passes > 1 else total
        except Exception as error:
            if not memory.may_halve(error, len(x), x.device):
                raise
        self._halve(len(x), x.device)
        return self._plain_logits(model, x, tuple(extra))

    def _halve(self, rows: int, device: torch.device) -> None:
        self.room = (rows + 1) // 2
        memory.free_cached(device)

    def gradient(self, state: SlotState, rules: Rules | None) -> torch.Tensor:
        """The input gradient at the current iterates, which the same launch tracks by `rules`; an
        inset takes one more forward."""
        at = self.differentiable(state)
        if self.passes == 1 and at is state:
            return self._pass(state, state.loss, rules)[0]
        scratch = torch.empty_like(state.loss)
        total, mean_logits = self._pass(at, scratch, None)
        for _ in range(self.passes - 1):
            grad, logits = self._pass(at, scratch, None)
            total, mean_logits = total + grad, mean_logits + logits
        mean_logits = mean_logits / self.passes
        if at is not state:
            mean_logits = self.search_logits(state.x_adv.detach(), state.extra)
        self.judge.track(state, mean_logits, rules)
        return total / self.passes

    def differentiable(self, state: SlotState) -> SlotState:
        """`state`, or where the model clamps the same slots with iterates moved inside."""
        if not self.inset:
            return state
        assert self.bounds is not None, "nothing lies at no bounds"
        x_adv = clamping.moved_inside(state.x_adv.detach(), self.bounds, self.inset)
        return replace(state, x_adv=x_adv)

    def find_inset(self, x_adv: torch.Tensor, extra: Extra = ()) -> None:
        """Look whether the model loses the gradient at bounds, and set `inset`; synchronises."""
        assert self.bounds is not None, "nothing lies at no bounds"
        model = self.model if self.search is None else self.search.forward

        def gradient(x: torch.Tensor) -> torch.Tensor:
            leaf = x.detach().clone().requires_grad_()
            with torch.enable_grad():
                logits = self._forward(model, leaf, [rows[: len(x)] for rows in extra])
            self.backwards += len(x)
            if self.search is None:
                self.own_forwards += len(x)
                self.own_backwards += len(x)
            return clamping.gradient_of(logits, leaf, scale=self._scale)

        while True:
            x_adv = x_adv[: self.room]
            try:
                self.inset = clamping.lost_at_bounds(gradient, x_adv, self.bounds)
                return
            except Exception as error:
                if not memory.may_halve(error, len(x_adv), x_adv.device):
                    raise
            self._halve(len(x_adv), x_adv.device)

    def _pass(
        self,
        state: SlotState,
        loss: torch.Tensor,
        rules: Rules | None,
        judged: Judged | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(input gradient, logits) of one forward and backward; judged: these rows are tracked."""
        if len(state) <= self.rows_of(len(state)):
            seen = [judged]
            try:
                return self._whole_pass(state, loss, rules, seen)
            except Exception as error:
                if not memory.may_halve(error, len(state), state.x.device):
                    raise
            judged = seen[-1]
            self._halve(len(state), state.x.device)
        grads, logits = [], []
        size = self.rows_of(len(state))
        for first in range(0, len(state), size):
            part = slice(first, first + size)
            known = None if judged is None else Judged(*(rows[part] for rows in judged))
            grad, own = self._pass(state.rows(part), loss[part], rules, known)
            grads.append(grad)
            logits.append(own)
        return torch.cat(grads), torch.cat(logits)

    def _whole_pass(
        self, state: SlotState, loss: torch.Tensor, rules: Rules | None, seen: list[Judged | None]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Leaves in `seen` what it knows as soon as the rows are tracked: a slot counts its steps,
        and must not be tracked again if memory runs out on the way back."""
        logits = self.graph(state)
        judged = seen[-1]
        if judged is None:
            grad_logits = self.judge.differentiate(logits.detach(), state, loss, rules)
            judged = Judged(logits.detach(), grad_logits)
            seen.append(judged)
        return self.backward(logits, state, judged.grad_logits), judged.logits

    def graph(self, state: SlotState) -> torch.Tensor:
        """(B, C) logits at the current iterates, with the graph of a backward pass."""
        model: Model = self.model if self.search is None else self.search.forward
        if state.model_input is not None:
            assert isinstance(self.model, Normalized)
            model = self.model.model if self.search is None else self.search.forward_inner
        with torch.enable_grad():
            logits = self._forward(model, state.leaf.requires_grad_(), state.extra)
            self.own_forwards += len(state) if self.search is None else 0
            if self._scale != 1.0:
                logits = logits.float()  # the loss head's gradient would be rounded before scaling
        if not logits.requires_grad:
            raise ValueError(
                "the model's output has no gradient: it is detached, computed under no_grad, or "
                "made of integers; wrap the part that blocks it in fastadv.BPDA"
            )
        return logits

    def _warn_of_training(self, samples: int) -> None:
        if self.is_left_in_training is None:
            recorded.warn_of_training(self.model, samples)
        elif self.is_left_in_training:
            diagnostics.warn("recorded_in_training", samples, samples)

    @property
    def _scale(self) -> float:
        return 1.0 if self.search is None else self.search.scale

    def _answer(self, model: Model, x: torch.Tensor, extra: Sequence[torch.Tensor]) -> torch.Tensor:
        if not self.is_sizing:
            return model(x, *extra)
        output, self.fast = pass_size.looked_at(model, x, extra)
        self.is_sizing = False
        return output

    def _forward(
        self, model: Model, x: torch.Tensor, extra: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        version = x._version
        began = time.perf_counter()
        try:
            logits = outputs.logits_in(self._answer(model, x, extra), x)
            self.judge.check_output(logits, x)
        except Exception as error:
            is_written = x._version != version or "in-place operation" in str(error)
            if isinstance(error, RuntimeError) and is_written:
                raise ValueError(outputs.IN_PLACE) from error
            outputs.explain(error, x, len(extra), self.whole)
            raise
        self.seconds += time.perf_counter() - began
        self.forwards += len(x)
        if not self.whole:
            self.whole = len(x)
            self.first = logits.detach() if self.judge.of_logits else None
            self._warn_of_training(len(x))
        if x._version != version:
            raise ValueError(outputs.IN_PLACE)
        return logits

    def backward(
        self,
        output: torch.Tensor,
        state: SlotState,
        grad_output: torch.Tensor | None,
        *,
        keep_graph: bool = False,
    ) -> torch.Tensor:
        """The input gradient of an output of `graph`; keep_graph: another one will follow."""
        scale = self._scale
        if scale != 1.0:
            grad_output = (
                torch.full_like(output, scale) if grad_output is None else (grad_output * scale)
            )
        began = time.perf_counter()
        grad = input_gradient(output, state.leaf, grad_output, retain_graph=keep_graph)
        self.seconds += time.perf_counter() - began
        self.count_backwards(len(state))
        if grad is None:
            raise ValueError(
                "the model's output does not depend on its input (a detached copy?): no gradient "
                "flows to it; wrap the part that blocks it in fastadv.BPDA"
            )
        return grad if scale == 1.0 else self._unscaled(grad, state)

    def count_backwards(self, samples: int) -> None:
        """Of the model that is searched."""
        self.backwards += samples
        self.own_backwards += samples if self.search is None else 0

    def _unscaled(self, grad: torch.Tensor, state: SlotState) -> torch.Tensor:
        """Divided by the scale again, exactly; slots whose gradient overflowed are marked."""
        is_finite = grad.isfinite().reshape(len(grad), -1).all(1)
        state.slots[:, columns.FAULT] |= ~is_finite * columns.FAULT_OVERFLOW
        return grad.mul_(1 / self._scale)
