"""Both gradients of `clamp` at its bounds, old and new, on any installed torch.

Up to torch 2.13 a clamp passes all of the gradient to an input that lies at a bound. Since 2.14 it
passes none where the bound is a number, and half where it is a tensor, which gets the other half.
"""

from typing import Any

import torch
from torch.overrides import TorchFunctionMode

RULES = ("old", "new")

_BOUNDS = {"clamp": ("min", "max"), "clip": ("min", "max")}
_BOUNDS |= {"clamp_min": ("min",), "clamp_max": ("max",)}
# what is called -> its form out of place, and whether it works in place
_FORMS = {
    getattr(owner, name + suffix): (name, bool(suffix))
    for name in _BOUNDS
    for owner in (torch, torch.Tensor)
    for suffix in ("", "_")
}


def clamp_rule(rule: str) -> TorchFunctionMode:
    """A context in which clamps have the `rule`, "old" or "new", for gradients at their bounds.

    Holds for torch.clamp, clip, clamp_min and clamp_max, the methods and what works in place. Calls
    that need no gradient are torch's own. Not in force in other threads and processes, nor inside
    torch's own composites (functional.normalize).

    Example: `with clamp_rule("new"): torch.autograd.grad(x.clamp(0, 1).sum(), x)`.
    """
    if rule not in RULES:
        raise ValueError(f"rule must be one of {RULES}; got {rule!r}")
    return _ClampRule(rule)


def installed_rule() -> str:
    """The rule of the installed torch, measured at a bound."""
    with torch._C.DisableTorchFunction(), torch.inference_mode(False), torch.enable_grad():
        x = torch.ones(1, requires_grad=True)
        (grad,) = torch.autograd.grad(x.clamp(0.0, 1.0), x)
    return {1.0: "old", 0.0: "new"}[grad.item()]


class _ClampRule(TorchFunctionMode):
    def __init__(self, rule: str) -> None:
        super().__init__()
        self.rule = rule

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in _FORMS or "out" in kwargs or not _needs_grad(*args, *kwargs.values()):
            return func(*args, **kwargs)
        name, is_inplace = _FORMS[func]
        given = dict(zip(("input", *_BOUNDS[name]), args, strict=False)) | kwargs
        x, low, high = given["input"], given.get("min"), given.get("max")
        # in place, the history of x has to stay as it was before the call
        clamped = _Clamp.apply(self.rule, name, x.clone() if is_inplace else x, low, high)
        return x.copy_(clamped) if is_inplace else clamped


def _needs_grad(*inputs: Any) -> bool:
    return torch.is_grad_enabled() and any(
        value.requires_grad for value in inputs if isinstance(value, torch.Tensor)
    )


class _Clamp(torch.autograd.Function):
    """torch's own values, and the gradients of a rule."""

    @staticmethod
    def forward(
        ctx: Any, rule: str, name: str, x: torch.Tensor, low: Any, high: Any
    ) -> torch.Tensor:
        ctx.rule = rule
        ctx.numbers = [None if isinstance(v, torch.Tensor) else v for v in (low, high)]
        ctx.save_for_backward(x, *(v if isinstance(v, torch.Tensor) else None for v in (low, high)))
        bounds = {"min": low, "max": high}
        return getattr(torch, name)(x, *(bounds[bound] for bound in _BOUNDS[name]))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor):
        (grad,) = grad_outputs
        x, *tensors = ctx.saved_tensors
        pairs = zip(tensors, ctx.numbers, strict=True)
        low, high = (number if tensor is None else tensor for tensor, number in pairs)
        with torch.no_grad():
            shares = _shares(x, low, high, ctx.rule)
        needed = zip(shares, ctx.needs_input_grad[2:], strict=True)
        # where, and not a product alone: an infinite gradient counts as 0 outside the bounds
        return (
            None,
            None,
            *(
                torch.where(share > 0, grad * share.to(grad.dtype), 0.0) if is_needed else None
                for share, is_needed in needed
            ),
        )


def _shares(x: torch.Tensor, low: Any, high: Any, rule: str) -> tuple[torch.Tensor, ...]:
    """What x, low and high get of the gradient, as torch 2.13 (old) and 2.14 (new) share it out.

    Bounds are numbers, tensors or None, and whatever they are: NaN and low > high included.
    """
    never = torch.zeros_like(x, dtype=torch.bool)
    under, at_low, over_low = (never, never, ~never) if low is None else _compared(x, low)
    under_high, at_high, over = (~never, never, never) if high is None else _compared(x, high)
    crossed, equal, ordered = (never, never, ~never)
    if low is not None and high is not None:
        ordered, equal, crossed = low < high, low == high, low > high
    if rule == "old":
        inside = (over_low | at_low) & (under_high | at_high)
        return inside, under & ordered, over | crossed
    if not any(isinstance(bound, torch.Tensor) for bound in (low, high)):
        return over_low & under_high, never, never
    if low is None:  # as torch.minimum: NaN included
        return ~over * _halved(at_high), never, ~under_high * _halved(at_high)
    if high is None:
        return ~under * _halved(at_low), ~over_low * _halved(at_low), never
    at_low, at_high = at_low & ordered, at_high & ordered
    return (
        ~(under | over) * _halved(at_low | at_high),
        (under & (ordered | equal)) + 0.5 * at_low,
        (crossed | over & (ordered | equal)) + 0.5 * at_high,
    )


def _compared(x: torch.Tensor, bound: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return x < bound, x == bound, x > bound


def _halved(is_tied: torch.Tensor) -> torch.Tensor:
    return torch.where(is_tied, 0.5, 1.0)
