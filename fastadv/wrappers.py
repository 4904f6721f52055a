"""Model wrappers: input normalisation, and gradients through a surrogate."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from fastadv.isolation import Model, modules_behind

_HOOKS = ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")


class Normalized(nn.Module):
    """model((x - mean) / std): a model trained on normalised inputs, attacked in pixel units.

    mean, std: one float a channel, in the units of x. The fused steps write the normalised input
    themselves, so that an attack spends nothing on it. Raises ValueError unless mean and std have
    the same length and every std is positive.
    Example: `fastadv.Normalized(net, mean=(0.4914, 0.4822, 0.4465), std=(0.247, 0.2435, 0.2616))`.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, model: Model, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model = model
        device = None
        behind = modules_behind(model)
        if behind:
            self.training: bool = behind[0].training
            device = next((p.device for p in behind[0].parameters()), None)
        if behind != [model]:
            # of a function: seen by modules() and parameters()
            self.behind: nn.ModuleList = nn.ModuleList(behind)
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32, device=device))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32, device=device))
        if self.mean.shape != self.std.shape or self.mean.ndim != 1 or not (self.std > 0).all():
            raise ValueError(
                f"mean and std must be one float a channel, std > 0; got mean={mean}, std={std}"
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(self.normalize(x))

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
