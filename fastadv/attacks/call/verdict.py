"""What is read from logits and flags at the end of a call: margins, successes, warnings."""

from typing import NamedTuple

import numpy as np
import torch

from fastadv import diagnostics
from fastadv.attacks.call import squashing
from fastadv.engine.work import Work
from fastadv.kernels import slots as columns
from fastadv.losses import Loss
from fastadv.ops import layout
from fastadv.ops.heads import loss_head as heads
from fastadv.oracle.gradient import Oracle

# of an ensemble, which holds the gradient at x against what a step gains; of no kernel
FAULT_EMPTY_GRADIENT = 1 << 18
_CODES = {
    columns.FAULT_ZERO_GRADIENT: "zero_gradient",
    columns.FAULT_NAN_GRADIENT: "nan_gradient",
    columns.FAULT_NAN_LOGITS: "nan_logits",
    squashing.FAULT_PROBABILITIES: "probabilities",
    squashing.FAULT_SQUASHED: "squashed",
    FAULT_EMPTY_GRADIENT: "empty_gradient",
}


class Fallen(NamedTuple):
    """The samples of a call that fell, confirmed by the user's model: (k, ...) rows.

    indices: which rows of x. margin: max_{j != y} z_j - z_y. faults: (n,) on the host, bits of
    `fastadv.kernels.slots`, of all samples. reached: (n,) the highest loss of an attack on each
    sample, -inf where it fell at once, and x_reached: (n, ...) where.
    """

    indices: torch.Tensor
    x_adv: torch.Tensor
    prediction: torch.Tensor
    margin: torch.Tensor
    step: torch.Tensor
    faults: np.ndarray
    reached: np.ndarray
    x_reached: torch.Tensor


def margin_of(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(max_{j != y} z_j - z_y, prediction) of each row of logits, by the loss head."""
    margin = torch.empty(len(logits), dtype=layout.compute_dtype(logits), device=logits.device)
    prediction = torch.empty_like(labels)
    correct = torch.empty_like(labels, dtype=torch.bool)
    if len(logits):
        heads.loss_head_(
            logits,
            labels,
            None,
            None,
            margin,
            None,
            prediction,
            correct,
            None,
            None,
            "margin",
            float("inf"),
            0,
            0,
            False,
            0,
            False,
        )
    return margin, prediction


def loss_at(
    oracle: Oracle, logits: torch.Tensor, work: Work, loss: Loss, *, targeted: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss, prediction) of each row of logits, as a result reports them."""
    if not loss.is_named:
        judged = oracle.judge.readable(logits, work.y)
        return oracle.judge.custom(logits, work).detach(), judged.argmax(1)
    value = torch.empty(len(logits), dtype=work.eps.dtype, device=logits.device)
    prediction = torch.empty_like(work.labels)
    correct = torch.empty_like(work.labels, dtype=torch.bool)
    heads.loss_head_(
        logits,
        work.labels,
        work.targets if targeted else None,
        work.reference,
        value,
        None,
        prediction,
        correct,
        None,
        None,
        loss.kind,
        loss.parameter,
        0,
        0,
        False,
        0,
        False,
    )
    return value, prediction


def warn_of_faults(faults: np.ndarray, *, of_ensemble: bool = False) -> None:
    """Warn of what weakened an attack; faults: (n,) bits of `slots` and `squashing`."""
    seen = int(np.bitwise_or.reduce(faults, initial=0))
    for bit, code in _CODES.items():
        if seen & bit:
            count = int((faults & bit != 0).sum())
            diagnostics.warn(code, count, len(faults), of_ensemble=of_ensemble)


def joined(chunks: list[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    whole = torch.empty_like(like)
    return torch.cat(chunks, out=whole)
