"""The loss heads as compiled loops: the op's arguments as those of a loop."""

import importlib
from typing import Any

import torch

from fastadv.ops.loops import Loop, address

_LOOPS = {  # by kind: a module of this package and a loop in it, imported where it is called
    "cross_entropy": ("loops_ce", "cross_entropy"),
    "margin": ("loops_ranked", "margin"),
    "dlr": ("loops_ranked", "dlr"),
    "difference": ("loops_ranked", "difference"),
    "kl": ("loops_kl", "kl"),
}
_known: dict[str, Loop] = {}


def loss_head_(
    logits: Any,
    labels: Any,
    targets: Any,
    reference: Any,
    loss: Any,
    grad: Any,
    prediction: Any,
    correct: Any,
    slots: Any,
    best_loss: Any,
    kind: str,
    parameter: float,
    steps: int,
    first_step: int,
    stop_early: bool,
    best_from: int,
    any_error: bool,
) -> Any:
    """The op's arguments by position. NotImplemented where a tensor is of another dtype than the
    logits, or rows of numbers have gaps."""
    dtype, classes = logits.dtype, logits.shape[1]
    if kind not in _LOOPS or any(
        one is not None and (one.dtype != dtype or not one.is_contiguous())
        for one in (loss, best_loss)
    ):
        return NotImplemented
    if not (prediction.is_contiguous() and correct.is_contiguous()):
        return NotImplemented
    scratch = torch.empty(classes, dtype=dtype) if grad is None else None
    _loop_of(kind)[dtype](
        logits.data_ptr(),
        logits.stride(0),
        labels.data_ptr(),
        address(targets),
        address(reference),
        0 if reference is None else reference.stride(0),
        loss.data_ptr(),
        address(grad),
        0 if grad is None else grad.stride(0),
        address(scratch),
        prediction.data_ptr(),
        correct.data_ptr(),
        address(slots),
        address(best_loss),
        logits.shape[0],
        classes,
        0.0,
        parameter,
        steps,
        first_step,
        stop_early,
        best_from,
        any_error,
    )


def _loop_of(kind: str) -> Loop:
    loop = _known.get(kind)
    if loop is None:
        module, name = _LOOPS[kind]
        loop = _known[kind] = getattr(importlib.import_module(f"fastadv.ops.heads.{module}"), name)
    return loop
