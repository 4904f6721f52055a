"""Where in this repository a clamp is differentiated."""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

ROOT = Path(__file__).resolve().parents[1]

# ours or a test's: where a place is looked for
_FOLDERS = ("fastadv", "kernels", "benchmarks", "examples", "tests")
_CLAMPS = ("clamp", "clip", "clamp_min", "clamp_max")
_EDGED = ("hardtanh", "relu6")
_OF_TWO = ("maximum", "minimum", "fmax", "fmin")
NAMES = {name + suffix for name in (*_CLAMPS, *_EDGED) for suffix in ("", "_")} | {*_OF_TWO}
_FORMS = {
    getattr(owner, name)
    for owner in (torch, torch.Tensor, F)
    for name in NAMES
    if hasattr(owner, name)
}
# of one tensor they are reductions
_FORMS_OF_TWO = {getattr(owner, name) for owner in (torch, torch.Tensor) for name in ("max", "min")}


class Differentiated(TorchFunctionMode):
    """Notes the places (file:line) of clamps, maxima and minima whose gradient is taken."""

    def __init__(self) -> None:
        super().__init__()
        self.places: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if torch.is_grad_enabled() and _is_clamp(func, args, kwargs or {}) and out.requires_grad:
            place = _place()
            out.grad_fn.register_hook(lambda *grads: self.places.add(place))
        return out


def _is_clamp(func: Any, args: tuple, kwargs: dict) -> bool:
    if func in _FORMS_OF_TWO:
        return any(isinstance(v, torch.Tensor) for v in (*args[1:], *kwargs.values()))
    return func in _FORMS


def _place() -> str:
    """The innermost line of this repository that is being run."""
    frame = sys._getframe(2)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in _FOLDERS:
            return f"{path.relative_to(ROOT)}:{frame.f_lineno}"
        frame = frame.f_back
    return "outside of this repository"
