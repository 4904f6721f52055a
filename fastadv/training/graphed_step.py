"""Whole training steps, recorded once as a CUDA graph and replayed: craft, loss, backward, step."""

import contextlib
import itertools
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import nn

from fastadv.attacks.call import inputs
from fastadv.diagnostics import ExecutionWarning, emit
from fastadv.execution import CudaGraph
from fastadv.graphs.cuda import backend_for
from fastadv.graphs.facts import module_facts, tensor_facts
from fastadv.graphs.planner import StepGraphs
from fastadv.graphs.watched import Numbered
from fastadv.isolation import Model
from fastadv.reach import every_parameter
from fastadv.region import checked_mask
from fastadv.training import arguments, draws, recordable, refusals
from fastadv.training.held_batch import BatchCount, HeldBatch
from fastadv.training.methods import Step
from fastadv.training.with_extra import Extra
from fastadv.training.written import written

_MOST_SHAPES = 8  # batches of other shapes than these, oldest first, are recorded anew
_RESTLESS = 32  # batches in a row that no recording fits
# torch accumulates a weight's gradient on the stream where its node was made, and a kept graph
# keeps the node; torch 2.11 warns of that at an eager step on the side stream
_CAUSES = (
    "; in training also a loss or an output of an earlier pass that is kept without .detach(): the "
    "gradients of its weights are added up on the stream of that pass (PyTorch 2.11 warns that "
    '"the AccumulateGrad node\'s stream does not match")'
)


def graphed(
    step: Step,
    optimizer: torch.optim.Optimizer,
    *,
    clip_norm: float | None = None,
    cuda_graph: CudaGraph = "auto",
) -> "GraphedStep":
    """`run(model, x, y)`: one whole training step, on a GPU recorded once and replayed.

    run crafts, computes the loss and its gradients, clips their norm over the optimizer's
    parameters to clip_norm where that is given, lets the optimizer step and sets the gradients to
    None; it returns the loss, detached, on the device. step: any of `fastadv.training`; all replays
    of `FreeAT` are one call. optimizer: SGD, Adam or AdamW. cuda_graph: "auto" makes the same steps
    eagerly on a CPU, and also where they cannot be recorded (models that wait for the device,
    data-parallel wrappers), which it says once; True raises there; False never records. Batches of
    an eps_warmup are eager.

    Each shape of batch is recorded on its own; learning rates, weights and the noise of each batch
    are read anew by every replay, and whatever else changes is recorded anew. The result is that of
    the eager loop with the optimizer's fused=True and, on a GPU, learning rates rounded to float32;
    only what a model draws itself (dropout) comes from the graph's own generator. Python code in
    the model, hooks included, does not run in a replay. Schedulers, state_dict() and
    load_state_dict() are used as ever. Raises ValueError for fp16, which needs a loss scaler: use
    bf16.

    Example: `run = fastadv.training.graphed(step, optimizer)`, then in the loop
    `loss = run(model, x, y)`.
    """
    return GraphedStep(step, optimizer, clip_norm=clip_norm, cuda_graph=cuda_graph)


class GraphedStep:
    """What `graphed` returns. refusal: why steps are not recorded, in words, or None."""

    def __init__(
        self,
        step: Step,
        optimizer: torch.optim.Optimizer,
        *,
        clip_norm: float | None,
        cuda_graph: CudaGraph,
    ) -> None:
        refusals.check(step, optimizer, clip_norm)
        self.step = step
        self.optimizer = optimizer
        self.clip_norm = clip_norm
        self.cuda_graph = cuda_graph
        self.refusal: str | None = None
        self._device: torch.device | None = None
        self._graphs = StepGraphs(None)
        self._form: recordable.RecordableOptimizer | None = None
        self._held: dict[Hashable, HeldBatch] = {}
        self._unfit = 0
        self._watched: dict[nn.Module, Numbered] = {}

    def __repr__(self) -> str:
        recorded = "not recorded" if self.refusal is None else f"not recorded: {self.refusal}"
        if self.refusal is None and self._graphs.backend is not None:
            recorded = f"{self.replays:,} of them replayed"
        text = f"{self.step!r} with {type(self.optimizer).__name__}".replace("\n", " ")
        return f"<GraphedStep: {text}\n {self.step.batches:,} batches, {recorded[:100]}>"

    def __call__(
        self,
        model: Model,
        x: torch.Tensor,
        y: torch.Tensor,
        *,
        sample_ids: torch.Tensor | None = None,
        extra: Sequence[torch.Tensor] = (),
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Train on one batch; the loss before the step, detached. Arguments as in the step."""
        arguments.check_are_leaves((x, *extra), "a recorded step begins at x")
        beside, mask = inputs.check_extra(extra, x), checked_mask(mask, x)
        self._settle(x.device)
        self._refuse(recordable.refusal_of(self.optimizer) or refusals.refusal_of_model(model))
        if self._form is not None:
            self._form.fill()
        if self._graphs.backend is None or self.refusal is not None or self._is_early():
            self._advance(model, x.detach(), y, sample_ids, beside, mask)
        else:
            self._run(model, self._held_for(x, y, sample_ids, beside, mask))
        loss = self.step.train_loss
        assert loss is not None, "a step was made"
        return loss

    def release(self) -> None:
        """Free the memory of the recordings; the next batches are recorded anew."""
        self._graphs.release()
        self._held.clear()
        self._watched.clear()

    @property
    def replays(self) -> int:
        """How many batches were replayed."""
        return self._graphs.replays

    def _settle(self, device: torch.device) -> None:
        """Once for a device: what records there, and in which form the optimizer steps."""
        if device == self._device:
            return
        backend = backend_for(device, self.cuda_graph)
        self.release()
        self._device = device
        self._graphs = StepGraphs(
            backend,
            required=self.cuda_graph is True,
            most=_MOST_SHAPES,
            what="training steps",
            causes=_CAUSES,
        )
        self._form = None
        if backend is not None and recordable.refusal_of(self.optimizer) is None:
            self._form = recordable.RecordableOptimizer(self.optimizer, device)

    def _refuse(self, reason: str | None) -> None:
        """Say once why steps are not recorded, here or by an earlier recording that failed."""
        reason = self.refusal or reason
        if self._graphs.backend is None or reason is None:
            return
        if self.cuda_graph is True:
            raise RuntimeError(f"CUDA graph: not captured, because {reason}")
        if self.refusal is None:
            self.refusal = reason
            emit(
                ExecutionWarning(
                    f"CUDA graph: not captured, because {reason}; training steps go on without: "
                    "same results, slower"
                )
            )

    def _is_early(self) -> bool:
        """Whether this batch is checked, or belongs to the warm-up, whose radius always changes."""
        factor = arguments.warmup_factor(self.step.batches, self.step.eps_warmup)
        return not self.step._is_checked or factor < 1

    def _held_for(
        self,
        x: torch.Tensor,
        y: torch.Tensor,
        sample_ids: torch.Tensor | None,
        extra: Extra,
        mask: torch.Tensor | None,
    ) -> HeldBatch:
        """Tensors of this shape, filled with the batch."""
        labels = torch.int64 if getattr(self.step, "objective", None) is None else y.dtype
        form = (x.shape, x.dtype, x.stride(), y.shape, labels, y.device, sample_ids is None)
        form = (*form, *((e.shape, e.dtype, e.stride()) for e in extra))
        form = (*form, None if mask is None else mask.shape)
        held = self._held.pop(form, None) or HeldBatch(x, y, sample_ids, labels, extra, mask)
        self._held[form] = held
        if len(self._held) > _MOST_SHAPES:
            del self._held[next(iter(self._held))]
        held.fill(x, y, sample_ids, self.step.batches, extra, mask)
        return held

    def _run(self, model: Any, held: HeldBatch) -> None:
        step = self.step
        step._draws = draws.DeviceDraws(held.draws, step.batches)

        def advance() -> None:
            self._advance(model, held.x, held.y, held.sample_ids, held.extra, held.mask)
            held.keep(step)

        try:
            replayed = self._graphs.run(
                self._key(model, held),
                advance,
                BatchCount(step),
                written=lambda: written(step, model, self.optimizer, held),
            )
        finally:
            step._draws = None
            self.refusal = self._graphs.refusal
        held.give(step)
        # what torch's schedulers ask, who warn of a learning rate that no step has used
        vars(self.optimizer)["_opt_called"] = True
        self._unfit = 0 if replayed else self._unfit + 1
        if self._unfit == _RESTLESS:
            self._refuse(
                f"in {_RESTLESS} batches none was like the one before: shapes, the model's tensors "
                "and attributes, or settings of the optimizer but its lr (momentum, as "
                "OneCycleLR moves it without cycle_momentum=False) change all the time",
            )

    def _key(self, model: nn.Module, held: HeldBatch) -> Hashable:
        """All that a recorded step has baked in."""
        step, device = self.step, held.x.device.type
        settings = list(arguments.settings(step).values())
        bank, delta = getattr(step, "bank", None), getattr(step, "delta", None)
        assert self._form is not None, "refused otherwise"
        return (
            held.serial,
            _hashable(settings),
            tensor_facts(None if bank is None else bank.levels),
            tensor_facts(delta),
            (step._watch.inset, step._watch.rounds, _evictions(step)),
            torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device),
            self._facts_of(model).number(),
            self._form.facts(),
        )

    def _facts_of(self, model: nn.Module) -> Numbered:
        watched = self._watched.pop(model, None)
        self._watched[model] = watched or Numbered(lambda: module_facts(model), lambda: [model])
        if len(self._watched) > _MOST_SHAPES:
            del self._watched[next(iter(self._watched))]
        return self._watched[model]

    def _advance(
        self,
        model: Any,
        x: torch.Tensor,
        y: torch.Tensor,
        sample_ids: torch.Tensor | None,
        extra: Extra,
        mask: torch.Tensor | None,
    ) -> None:
        """One step, eagerly or as it is recorded."""
        refusals.check_autocast(x.device)
        given = {"sample_ids": sample_ids, "extra": extra or None, "mask": mask}
        named = {name: value for name, value in given.items() if value is not None}
        # the casts of weights that a surrounding autocast keeps: stale after the last step, and
        # after this one tensors of the graph
        torch.clear_autocast_cache()
        # closed here, also on errors: what it does at its end belongs into the recording
        with torch.enable_grad(), contextlib.closing(self.step(model, x, y, **named)) as losses:  # type: ignore[call-arg]
            for loss in losses:
                self._clear_gradients(model)
                with torch.autocast(x.device.type, enabled=False):
                    loss.backward()
                    if self.clip_norm is not None:
                        nn.utils.clip_grad_norm_(self._parameters(), self.clip_norm)
                    (self._form or self.optimizer).step()
        torch.clear_autocast_cache()
        self._clear_gradients(model)

    def _parameters(self) -> list[torch.Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _clear_gradients(self, model: Model) -> None:
        """Of all parameters: one that a recording left would be the graph's memory."""
        for p in itertools.chain(self._parameters(), every_parameter(model)):
            p.grad = None


def _evictions(step: Step) -> int:
    regions = getattr(step, "_regions", None)  # YOPO has none
    return 0 if regions is None else regions.evictions


def _hashable(value: Any) -> Hashable:
    """The value, where it has a hash; lists as tuples; else which object it is."""
    if isinstance(value, list | tuple):
        return tuple(_hashable(v) for v in value)
    return value if isinstance(value, Hashable) else id(value)
