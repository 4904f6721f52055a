"""Which implementation an op runs: Triton kernel, compiled loops, CPU path or eager reference."""

import contextlib
import functools
import importlib.util
import os
from typing import Literal, get_args

import torch

from fastadv.ops import compiled

Choice = Literal["auto", "triton", "reference"]
_TRITON_DEVICES = ("cuda", "xpu")  # ROCm calls itself cuda


def _checked(choice: str, source: str) -> str:
    if choice not in get_args(Choice):
        raise ValueError(f"{source} must be one of {get_args(Choice)}; got {choice!r}")
    return choice


_choice = os.environ.get("FASTADV_BACKEND", "auto")  # checked at the first op, not at import


class use_backend(contextlib.AbstractContextManager["use_backend"]):
    """Choose the implementation of every op.

    - "auto": the Triton kernel on GPUs, where it agrees with the reference at its first call; on
      CPUs the first that the op has for such a tensor: loops that numba compiles (with the extra
      `cpu`, unless FASTADV_COMPILED=0), its path in numpy or torch, its eager reference;
    - "triton": the kernel, without a fallback; RuntimeError if it differs at its first call;
    - "reference": the eager reference, which defines the op, whatever the device.

    Works as a call and as a context manager that restores the previous choice. "triton" on CPU
    tensors needs TRITON_INTERPRET=1, set before triton is first imported. Raises ValueError for any
    other name. Example: `with fastadv.ops.use_backend("reference"): ...`.
    """

    def __init__(self, choice: Choice) -> None:
        global _choice
        self._previous = _choice
        _choice = _checked(choice, "use_backend(choice)")

    def __enter__(self) -> "use_backend":
        return self

    def __exit__(self, *exception: object) -> None:
        global _choice
        _choice = self._previous


@functools.cache
def triton_is_installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def explain(device: torch.device) -> tuple[str, str]:
    """(backend, reason) that ops on `device` would run with now; raises as they would."""
    on_gpu = device.type in _TRITON_DEVICES
    _checked(_choice, "FASTADV_BACKEND")
    if _choice == "reference":
        return "reference", "chosen by use_backend or FASTADV_BACKEND"
    if _choice == "auto" and not on_gpu:
        reason = f"Triton needs a GPU, and tensors are on {device.type}"
        if device.type != "cpu":
            return "reference", reason
        if runs_compiled():
            return "compiled", reason
        return "cpu", f"{reason}; {compiled.why_not()}"
    if not triton_is_installed():
        if _choice == "auto":
            return "reference", "triton is not installed"
        raise RuntimeError("backend 'triton' was chosen: install it first (pip install triton)")
    if on_gpu:
        return "triton", f"tensors are on {device.type}"
    if interpreting():
        return "triton", "TRITON_INTERPRET=1: kernels run in the interpreter"
    raise RuntimeError(
        f"backend 'triton' was chosen for tensors on {device.type}: move them to a GPU, or set "
        "TRITON_INTERPRET=1 before python starts"
    )


def runs_triton(device: torch.device) -> bool:
    """Whether `explain` would say "triton"; raises as it would, and builds no text otherwise."""
    if _choice == "reference":
        return False
    if device.type in _TRITON_DEVICES:
        return triton_is_installed() or explain(device)[0] == "triton"
    return _choice != "auto" and explain(device)[0] == "triton"


def runs_compiled() -> bool:
    """Whether ops on plain tensors of CPUs run compiled loops under "auto"; imports numba."""
    return compiled.is_on()


def is_reference_chosen() -> bool:
    return _choice == "reference"


def is_triton_chosen() -> bool:
    return _choice == "triton"


def is_current(device: torch.device) -> bool:
    """Whether Triton would launch on `device` now: it launches on the current CUDA device."""
    return device.type != "cuda" or device.index == torch.cuda.current_device()


def on_device_of(tensor: torch.Tensor) -> contextlib.AbstractContextManager[None]:
    """Make the device of `tensor` current."""
    device = tensor.device
    return contextlib.nullcontext() if is_current(device) else torch.cuda.device(device)
