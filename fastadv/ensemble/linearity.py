"""Where a gradient says little of the loss within eps: a sign of masking that costs four passes."""

import torch

from fastadv import diagnostics
from fastadv.attacks import fgsm
from fastadv.attacks.call.call import Call
from fastadv.attacks.call.verdict import margin_of
from fastadv.engine import looks
from fastadv.execution import Execution
from fastadv.isolation import Model
from fastadv.threat_model import ThreatModel

_SHORT = 1 / 32  # of the step: what its slope is read from, and half precision still resolves
_LEAST, _MOST = 0.25, 2.0  # of unmasked models eight of ten gain 0.64 to 1.2 times what is told
_SAID = (  # by what came before
    "zero_gradient",
    "nan_gradient",
    "nan_logits",
    "clamped_input",
    "probabilities",
    "squashed",
)


def is_empty(short: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """(n,) bool. short, whole: what the margin gains on 1/32 of FGSM's step, and on all of it: less
    than a quarter of what the slope at its beginning says, or no slope."""
    told = short / _SHORT
    return (told <= 0) | (whole < _LEAST * told)


def is_rough(short: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """(n,) bool: as `is_empty`, or more than twice of what the slope says."""
    return is_empty(short, whole) | (whole > _MOST / _SHORT * short)


def rough(
    threat: ThreatModel,
    model: Model,
    x: torch.Tensor,
    labels: torch.Tensor,
    logits: torch.Tensor,
    *,
    sample_ids: torch.Tensor,
    extra: list[torch.Tensor],
    mask: torch.Tensor | None,
    execution: Execution,
) -> tuple[torch.Tensor, torch.Tensor, Call]:
    """((n,) bool as `is_rough`, and as `is_empty`, the call with its count of passes); logits:
    (n, C) at x."""
    call = Call(
        fgsm(threat, loss="margin", keep="last"),
        model,
        x,
        labels,
        target=None,
        sample_ids=sample_ids,
        x_init=None,
        extra=extra,
        mask=mask,
        execution=Execution(batch_size=execution.batch_size, inset=execution.inset),
        clean_logits=logits,
    )
    clean, gains = margin_of(logits, labels)[0], []
    with diagnostics.without(*_SAID), looks.heard_by(None):
        ahead = call.last_iterates()
    for share in (_SHORT, 1.0):
        margin, _ = margin_of(call.outputs_at(torch.lerp(x, ahead, share)), labels)
        gains.append(margin - clean)
    return is_rough(*gains), is_empty(*gains), call
