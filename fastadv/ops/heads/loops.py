"""The loss heads as compiled loops: the op's arguments as those of a loop."""

import importlib
from typing import Any

import torch

from fastadv.ops.loops import Loop, address

_LOOPS = {  # by kind: a module of this package and a loop in it, imported where it is called
    "cross_entropy": ("loops_ce", "cross_entropy"),
    "margin": ("loops_ranked", "margin"),
    "dlr": ("loops_ranked", "dlr"),
    "ratio": ("loops_ranked", "ratio"),
    "difference": ("loops_ranked", "difference"),
    "kl": ("loops_kl", "kl"),
    "none": ("loops_ranked", "none"),
}
_KL_CLASSES = 256  # with more, torch's logarithms in vectors win
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
    """The op's arguments by position. NotImplemented where losses are of another dtype than the
    logits, where a tensor of one number a row has gaps, and for KL over many classes."""
    dtype, classes = logits.dtype, logits.shape[1]
    if (
        (kind == "kl" and classes > _KL_CLASSES)
        or (kind == "none" and grad is not None)
        or loss.dtype != dtype
        or not loss.is_contiguous()
        or not prediction.is_contiguous()
        or not correct.is_contiguous()
        or (best_loss is not None and (best_loss.dtype != dtype or not best_loss.is_contiguous()))
    ):
        return NotImplemented
    if kind == "none":
        reference = loss
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
