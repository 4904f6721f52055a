"""Model wrappers: input normalisation, outputs before squashing, gradients through a surrogate."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from fastadv import outputs
from fastadv.isolation import Model
from fastadv.reach import modules_behind

_HOOKS = ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")


class Normalized(nn.Module):
    """model((x - mean) / std): a model trained on normalised inputs, attacked in pixel units.

    mean, std: one float a channel, in the units of x. The fused steps write the normalised input
    themselves, so that an attack spends nothing on it. Raises ValueError unless mean and std have
    the same length and every std is positive.
    Example: `fastadv.Normalized(net, mean=(0.4914, 0.4822, 0.4465), std=(0.247, 0.2435, 0.2616))`.
    """

    model: Model
    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, model: Model, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if not callable(model):
            raise TypeError(f"model must be callable; got {type(model).__name__}")
        behind = _adopt(self, model)
        device = next((p.device for m in behind[:1] for p in m.parameters()), None)
        self.register_buffer("mean", _a_channel(mean, name="mean", device=device))
        self.register_buffer("std", _a_channel(std, name="std", device=device))
        if self.mean.shape != self.std.shape or self.mean.ndim != 1 or not (self.std > 0).all():
            raise ValueError(
                f"mean and std must be one float a channel, std > 0; got mean={mean}, std={std}"
            )

    def forward(self, x: torch.Tensor, *extra: torch.Tensor) -> torch.Tensor:
        return self.model(self.normalize(x), *extra)

    def may_be_bypassed(self, x: torch.Tensor) -> bool:
        """Whether fused steps may write the normalised input of x themselves: nothing looks on."""
        return (
            type(self) is Normalized
            and x.ndim >= 2
            and x.dtype in (torch.float32, torch.float64)
            and self.mean.device == x.device
            and not any(getattr(self, f"_{hooks}") for hooks in _HOOKS)
        )

    def normalize(self, x: torch.Tensor) -> torch.Tensor:
        if x.ndim < 2 or x.shape[1] != len(self.mean):
            raise ValueError(
                f"x must have {len(self.mean)} channels, one for each mean; got {tuple(x.shape)}"
            )
        shape = (1, -1, *[1] * (x.ndim - 2))
        return (x - self.mean.to(x).view(shape)) / self.std.to(x).view(shape)


def _a_channel(values: Sequence[float], *, name: str, device: torch.device | None) -> torch.Tensor:
    """A float32 copy. Raises TypeError for what are no numbers."""
    try:
        return torch.as_tensor(values, dtype=torch.float32, device=device).detach().clone()
    except (TypeError, ValueError):
        raise TypeError(
            f"{name} must be one float a channel; got {type(values).__name__}"
        ) from None


Kind = Literal["sigmoid", "tanh", "softmax"]

# the ends of what comes out of each
_ENDS = {"sigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0), "softmax": (0.0, 1.0)}
_FUNCTIONS = {
    "sigmoid": (torch.sigmoid, F.sigmoid, torch.Tensor.sigmoid, torch.special.expit),
    "tanh": (torch.tanh, F.tanh, torch.Tensor.tanh),
    "softmax": (torch.softmax, F.softmax, torch.Tensor.softmax, torch.special.softmax),
}
_STRAY = 1e-3  # what half precision may leave the ends by


class Unsquashed(nn.Module):
    """The logits z of a model that returns sigmoid(z), tanh(z) or softmax(z), to be attacked there.

    Where the model is confident a squashed output rounds to its end, and with it the gradient to
    zero. kind: "sigmoid", "tanh" or "softmax". Returns (B, C) in the dtype of the model's output:
    z itself, exactly, where the output is what torch's function (`nn.Sigmoid`, `torch.tanh`,
    `F.softmax`, ...) gave, last of all; where it is not (compiled or scripted models, one that goes
    on behind it) log(p / (1 - p)), atanh(p) or log(p) of outputs p that are clamped off the ends by
    a rounding, so that all is finite, and those at an end have no gradient. The order of classes is
    that of the model but for ties that squashing made. The model itself is left as it is.

    With `Normalized` outside, `Normalized(Unsquashed(net, kind), mean, std)`, steps stay fused.
    Raises ValueError for another kind, and at the first call for outputs beyond the ends: such are
    logits already, or of another kind.

    Example: `fastadv.Unsquashed(torch.nn.Sequential(net, torch.nn.Sigmoid()), "sigmoid")`.
    Source: Carlini and Wagner 2016, arXiv:1607.04311, who so attack defensive distillation.
    """

    model: Model

    def __init__(self, model: Model, kind: Kind) -> None:
        super().__init__()
        if not callable(model):
            raise TypeError(f"model must be callable; got {type(model).__name__}")
        if kind not in get_args(Kind):
            raise ValueError(f"kind must be one of {get_args(Kind)}; got {kind!r}")
        _adopt(self, model)
        self.kind = kind
        self._is_checked = False

    def extra_repr(self) -> str:
        return f"kind={self.kind!r}"

    def forward(self, x: torch.Tensor, *extra: torch.Tensor) -> torch.Tensor:
        with _Squashings(self.kind) as squashings:
            output = outputs.logits_in(self.model(x, *extra), x)
        if output is squashings.output and squashings.input is not None:
            return squashings.input.to(output.dtype)
        self._check(output)
        return _unsquash(output, self.kind)

    def _check(self, output: torch.Tensor) -> None:
        """Raises ValueError for outputs beyond the ends; synchronises, at the first call only."""
        if self._is_checked or torch.compiler.is_compiling() or output.numel() == 0:
            return
        low, high = torch.stack(torch.aminmax(output.detach())).tolist()
        ends = _ENDS[self.kind]
        if low < ends[0] - _STRAY or high > ends[1] + _STRAY:
            raise ValueError(
                f"Unsquashed(model, {self.kind!r}) undoes outputs in [{ends[0]:g}, {ends[1]:g}]; "
                f"the model gave values from {low:.6g} to {high:.6g}: name the kind that it ends "
                "with, or attack it as it is if these are logits"
            )
        self._is_checked = True


class _Squashings(TorchFunctionMode):
    """Inside, in this thread: what the last call of the squashing function got and gave."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.input: torch.Tensor | None = None
        self.output: torch.Tensor | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if func in _FUNCTIONS[self.kind] and "out" not in kwargs:
            self.input = args[0] if args else kwargs["input"]
            self.output = output
            if self.kind == "softmax" and not _is_over_classes(output, args, kwargs):
                self.output = None
        return output


def _is_over_classes(output: torch.Tensor, args: Any, kwargs: dict[str, Any]) -> bool:
    dim = args[1] if len(args) > 1 else kwargs.get("dim")
    return dim == 1 or (output.ndim == 2 and dim in (-1, None))


def _unsquash(output: torch.Tensor, kind: str) -> torch.Tensor:
    """The inverse at outputs moved off the ends, where it would be infinite."""
    limits = torch.finfo(output.dtype)
    low, high = limits.tiny, 1.0 - limits.eps / 2  # the least above 0, the most below 1
    p = output.float() if limits.bits < 32 else output
    inside = p.detach().clamp(-high if kind == "tanh" else low, high)
    # a selection, not the clamp, is differentiated: it gives entries at an end no gradient
    p = torch.where(p == inside, p, inside)
    if kind == "tanh":
        logits = p.atanh()
    else:
        logits = p.log() if kind == "softmax" else p.log() - (-p).log1p()
    return logits.to(output.dtype)


def _adopt(wrapper: nn.Module, model: Model) -> list[nn.Module]:
    """Make `model` the wrapper's, in the same mode; the modules behind it, which modules() and
    parameters() of the wrapper see, also of a function."""
    wrapper.model = model  # type: ignore[assignment]
    behind = modules_behind(model)
    if behind:
        wrapper.training = behind[0].training
    hidden = [module for module in behind if module is not model]
    if hidden:  # of a function, or what a module holds in a list
        wrapper.behind = nn.ModuleList(hidden)
    return behind


class BPDA(nn.Module):
    """forward(x), with the gradient of surrogate(x): attacks a layer that has no useful gradient.

    forward, surrogate: callables from (B, ...) to the same shape; surrogate=None is the identity
    (straight-through). Backward Pass Differentiable Approximation.
    Example: `torch.nn.Sequential(fastadv.BPDA(lambda x: (x * 3).round() / 3), net)`.
    Source: Athalye et al. 2018, arXiv:1802.00420, section 4.1.
    """

    def __init__(self, function: Model, surrogate: Model | None = None) -> None:
        super().__init__()
        if not callable(function) or not (surrogate is None or callable(surrogate)):
            raise TypeError(
                f"function and surrogate must be callables; got {function!r}, {surrogate!r}"
            )
        self.function = function
        self.surrogate = surrogate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _Surrogate.apply(x, self.function, self.surrogate)


class _Surrogate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, x: torch.Tensor, function: Model, surrogate: Callable[..., torch.Tensor] | None
    ) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.surrogate = surrogate
        return function(x.detach())

    @staticmethod
    def backward(ctx, *grads: torch.Tensor):
        (grad,) = grads
        if ctx.surrogate is None:
            return grad, None, None
        with torch.enable_grad():
            x = ctx.saved_tensors[0].detach().requires_grad_()
            (grad,) = torch.autograd.grad(ctx.surrogate(x), x, grad)
        return grad, None, None
