"""The passes that attacks are made of, timed: forward alone, and a step with its way back."""

import contextlib
import time
from collections.abc import Callable
from typing import Literal

import torch

from fastadv import ops
from fastadv.graphs.cuda import backend_for
from fastadv.isolation import Model
from fastadv.oracle.backward import input_gradient

Use = Literal["forward", "gradient"]
USES: tuple[Use, ...] = ("forward", "gradient")
_SIZE = 0.01  # of the step, whose cost does not depend on it


def pass_of(
    use: Use, model: Model, x: torch.Tensor, extra: tuple[torch.Tensor, ...]
) -> Callable[[], None]:
    """One pass over x. "forward": as of Square, the clean look and verification. "gradient": with
    the way back to the input, and an L-infinity step. On a GPU it is recorded, as attacks are."""
    run = _forward(model, x, extra) if use == "forward" else _step(model, x, extra)
    backend = backend_for(x.device, "auto")
    if backend is None:
        return run
    backend.warm(run)
    with contextlib.suppress(Exception):  # what cannot be recorded is timed as it is
        return backend.capture(run)
    return run


def _forward(model: Model, x: torch.Tensor, extra: tuple[torch.Tensor, ...]) -> Callable[[], None]:
    def run() -> None:
        with torch.no_grad():
            model(x, *extra)

    return run


def _step(model: Model, x: torch.Tensor, extra: tuple[torch.Tensor, ...]) -> Callable[[], None]:
    leaf = x.clone(memory_format=torch.preserve_format)

    def run() -> None:
        at = leaf.detach().requires_grad_()
        with torch.enable_grad():
            logits = model(at, *extra)
        if not logits.requires_grad:
            return
        grad = input_gradient(logits, at, torch.ones_like(logits))
        if grad is not None:
            ops.linf_step(leaf, grad, x, step_size=_SIZE, eps=_SIZE, bounds=None)

    return run


def clock_of(device: torch.device) -> tuple[Callable[[], float], str]:
    """(seconds so far, what they are seconds of), the device waited for.

    On one CPU thread those of that thread, which other processes do not disturb; what several
    threads cost is seen on the wall alone.
    """
    if device.type == "cpu":
        if torch.get_num_threads() == 1:
            return time.thread_time, "process time of one thread"
        return time.perf_counter, f"wall time of {torch.get_num_threads()} threads"

    def waited() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elif device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter()

    return waited, f"wall time, {device}"
