"""YOPO: full passes fix the first layer's co-state, cheap attack steps go through that layer."""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from fastadv.elements import common_bounds
from fastadv.execution import Precision
from fastadv.isolation import Model
from fastadv.starts import start_point
from fastadv.threat_model import ThreatModel
from fastadv.training import arguments, craft, regions
from fastadv.training.draws import DeviceDraws, draw_of
from fastadv.training.input_watch import InputWatch
from fastadv.training.train_mode import warn_of_eval_mode
from fastadv.training.weight_loss import Reduced


@dataclass(eq=False, repr=False)
class YOPO:
    """YOPO-outer-inner: each of `outer` full passes gives weight gradients and the co-state p =
    d loss / d h(x_adv) of the first layer h; `inner` fused steps then ascend <h(x_adv), p>.

    first_layer: the name, as in `model.named_modules()`, of the module that the input (or a scaled
    input) goes into. step_size: in input units, eps / 4 if None. The gradient handed over is the
    mean over the passes of the weight gradients and, on top, of h's own at the last x_adv; the
    authors take the sum and divide the learning rate by `outer`. All of the input must go through
    h. 3 units a pass, and the first layer's own. Takes no modifiers and no bank; in fp16 gradients
    underflow: use bf16. Other arguments as in `CraftedStep`; a model that clamps its input before
    h, or as h, is noticed as there, and h's input gradient alone is taken inside the bounds.

    Example: `loss = fastadv.training.YOPO(threat, first_layer="conv1").loss(model, x, y)`.
    Source: Zhang et al. 2019, arXiv:1905.00877, algorithm 1.
    """

    threat: ThreatModel
    _: KW_ONLY
    first_layer: str
    outer: int = 5
    inner: int = 3
    step_size: float | None = None
    label_smoothing: float = 0.0
    eps_warmup: int = 0
    precision: Precision | None = None
    seed: int = 0
    batches: int = field(init=False, default=0)
    train_loss: torch.Tensor | None = field(init=False, default=None)
    _is_checked: bool = field(init=False, default=False)
    _draws: DeviceDraws | None = field(init=False, default=None)
    _watch: InputWatch = field(init=False)

    def __post_init__(self) -> None:
        arguments.check_settings(self)
        regions.check_alike(self)
        self._watch = InputWatch(common_bounds(self.threat))

    def __repr__(self) -> str:
        return arguments.pasteable(self)

    def __call__(
        self,
        model: nn.Module,
        x: torch.Tensor,
        y: torch.Tensor,
        *,
        sample_ids: torch.Tensor | None = None,
        x_init: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
    ) -> Iterator[torch.Tensor]:
        """Yield the one loss of this batch; arguments as in `loss`."""
        yield self.loss(model, x, y, sample_ids=sample_ids, x_init=x_init, mask=mask)

    def loss(
        self,
        model: nn.Module,
        x: torch.Tensor,
        y: torch.Tensor,
        *,
        sample_ids: torch.Tensor | None = None,
        x_init: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The mean loss of the passes, whose backward hands over gradients computed already.

        Arguments as in `CraftedStep.loss`.
        """
        warn_of_eval_mode(self, craft.inner_module(model))
        inner_model, layer = _named_layer(craft.inner_module(model), self.first_layer)
        if not self._is_checked:
            self._watch.rounds |= arguments.check_batch(self.threat, inner_model, x, y) is not x
        arguments.check_not_empty(x)
        arguments.check_are_leaves((x,), "YOPO gives gradients of the model alone")
        x, y = self._watch.inside(x.detach()), y.to(torch.int64)
        ids = arguments.sample_ids(sample_ids, x, needed=False)
        region = arguments.region(self.threat, x, mask)
        factor = arguments.warmup_factor(self.batches, self.eps_warmup)
        eps = float(self.threat.eps) * factor
        step = factor * (self.threat.eps / 4 if self.step_size is None else self.step_size)
        if x_init is not None:
            arguments.check_start(x_init, x)
            x_adv = x_init.clone(memory_format=torch.preserve_format)
            x_adv = x_adv if region is None else region.masked(x_adv, x)
        else:
            x_adv = start_point(
                self.threat,
                x,
                seed=self.seed,
                sample_ids=ids,
                draw=draw_of(self),
                clamp_start=False,
                eps=eps,
                region=region,
            )
        box = None if region is None else region.box(x, eps, like=x_adv)
        asked: Model = Reduced.of(model)
        if not self._is_checked:
            asked = arguments.checking(asked, inner_model, x, y)
        passes = _Passes(asked, inner_model, layer, self.label_smoothing)
        with craft.in_precision(self.precision, x.device):
            for _ in range(self.outer):
                costate = passes.full(x_adv, y)
                gradient = functools.partial(
                    passes.input_gradient, costate=costate, bounds=common_bounds(self.threat)
                )
                for _ in range(self.inner):
                    grad = self._watch.gradient(gradient, x_adv, inner_model)
                    self.threat.step_(x_adv, grad, x, step_size=step, eps=eps, box=box)
                passes.first_layer_again(x_adv, costate)
        self._is_checked = True
        self._watch.close()
        self.batches += 1
        value = torch.stack(passes.losses).mean()
        self.train_loss = value
        grads = [g / (self.outer * len(y)) for g in passes.grads]
        return _Precomputed.apply(value, grads, *passes.weights)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"method": "YOPO", "batches": self.batches, **self._watch.state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as the step that gave `state`; raises ValueError if it does not fit."""
        arguments.check_state(state, ("method", "batches"), optional=("inset", "rounds"))
        arguments.check_method(state, self)
        self.batches = int(state["batches"])
        self._watch = InputWatch.restored(common_bounds(self.threat), state)


class _Passes:
    """Full passes and passes of the first layer, and the weight gradients that they add up."""

    def __init__(
        self, model: Model, inner: nn.Module, layer: nn.Module, label_smoothing: float
    ) -> None:
        self.model = model
        self.inner = inner
        self.layer = layer
        self.label_smoothing = label_smoothing
        self.weights = [p for p in inner.parameters() if p.requires_grad]
        self.grads = [torch.zeros_like(p) for p in self.weights]
        self.losses: list[torch.Tensor] = []

    def full(self, x_adv: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Add the weight gradients; the co-state d loss / d h(x_adv). Losses are summed: a mean
        would round half-precision gradients to zero."""
        outputs: list[torch.Tensor] = []

        def keep(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            outputs.append(output)
            return output.clone()  # what follows may work in place

        leaf = x_adv.detach().requires_grad_()  # so that h(x_adv) has a gradient if h is frozen
        with torch.enable_grad():
            with _seen(self.layer, keep):
                logits = self.model(leaf)
            if len(outputs) != 1:
                raise ValueError(
                    f"first_layer must be called once a forward; it was {len(outputs)} times"
                )
            loss = F.cross_entropy(logits, y, label_smoothing=self.label_smoothing, reduction="sum")
        costate, *grads = torch.autograd.grad(loss, [outputs[0], *self.weights], allow_unused=True)
        self._add(grads)
        self.losses.append(loss.detach() / len(y))
        return costate

    def input_gradient(
        self, x_adv: torch.Tensor, costate: torch.Tensor, bounds: tuple[float, float] | None
    ) -> torch.Tensor:
        """d <h(clamp(x_adv)), p> / d x_adv, without weight gradients: 0 outside bounds only.

        No clamp is differentiated: torch 2.14 has 0 at the bounds too, where it had 1 before.
        """
        leaf = x_adv.detach() if bounds is None else x_adv.detach().clamp(*bounds)
        with torch.enable_grad():
            output = self._first_output(leaf.requires_grad_())
        grad = craft.input_gradient(output, leaf, costate)
        return grad if bounds is None else grad.masked_fill(x_adv != leaf, 0.0)

    def first_layer_again(self, x_adv: torch.Tensor, costate: torch.Tensor) -> None:
        """Add d <h(x_adv), p> / d weights."""
        with torch.enable_grad():
            output = self._first_output(x_adv.detach())
        if output.requires_grad:  # not if it is frozen
            self._add(torch.autograd.grad(output, self.weights, costate, allow_unused=True))

    def _first_output(self, x: torch.Tensor) -> torch.Tensor:
        """The first layer's output: the model runs up to it and no further."""

        def stop(*call: Any) -> None:
            raise _Reached(call[2])

        with _seen(self.layer, stop):
            try:
                self.inner(x)
            except _Reached as reached:
                return reached.output
        raise AssertionError("the layer was called in the full pass")

    def _add(self, grads: Sequence[torch.Tensor | None]) -> None:
        for total, grad in zip(self.grads, grads, strict=True):
            if grad is not None:
                total += grad


class _Reached(Exception):
    def __init__(self, output: torch.Tensor) -> None:
        super().__init__()
        self.output = output


class _Precomputed(torch.autograd.Function):
    """A value whose gradients are known: backward hands them to the weights, hooks and all."""

    @staticmethod
    def forward(
        ctx: Any, value: torch.Tensor, grads: list[torch.Tensor], *weights: torch.Tensor
    ) -> torch.Tensor:
        ctx.grads = grads
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor):
        (scale,) = grad_outputs
        return None, None, *(g * scale.to(g.dtype) for g in ctx.grads)


@contextlib.contextmanager
def _seen(layer: nn.Module, hook: Any) -> Iterator[None]:
    handle = layer.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _named_layer(model: Model, name: str) -> tuple[nn.Module, nn.Module]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"YOPO needs an nn.Module; got {type(model).__name__}")
    if any(map(_is_compiled, model.modules())):
        raise ValueError(
            "YOPO stops the model behind its first layer, which compiled code does not: give it "
            "the model as it was before torch.compile or torch.jit"
        )
    modules = dict(model.named_modules())
    if name not in modules or not name:
        near = [n for n in modules if n][:8]
        raise ValueError(
            f"first_layer must name a submodule of the model; got {name!r}. Its first: {near}"
        )
    return model, modules[name]


def _is_compiled(module: nn.Module) -> bool:
    is_scripted = isinstance(module, torch.jit.ScriptModule)
    return is_scripted or hasattr(module, "_orig_mod") or bool(module._compiled_call_impl)
