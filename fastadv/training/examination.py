"""One look at a network on held-out samples: clean, under a single step, and under PGD-10."""

import warnings
from typing import Any, NamedTuple

import torch

from fastadv.attacks import Attack, pgd
from fastadv.diagnostics import AttackWarning
from fastadv.elements import of_elements, radius_of
from fastadv.evaluation.accuracy import logits_of
from fastadv.ops import doubles
from fastadv.threat_model import ThreatModel

_PGD_STEPS = 10


class Seen(NamedTuple):
    """The fields of `fastadv.training.Check` of the same names."""

    clean: float
    single_step: float
    pgd: float
    one_class: float
    classes: int


def look(
    model: Any,
    x: torch.Tensor,
    y: torch.Tensor,
    threat: ThreatModel,
    *,
    batch_size: int,
    restarts: int,
    seed: int,
) -> Seen:
    """What a check is made of; the model is left as it was."""
    eps = radius_of(threat)
    eps = eps if of_elements(eps) else float(eps)
    logits = logits_of(model, x, batch_size=batch_size)
    predictions, classes = logits.argmax(1), logits.shape[1]
    one_class = predictions.bincount().max().item() / len(x)
    if not bool(logits.isfinite().all()):  # attacks refuse NaN, and so is none robust
        return Seen(0.0, 0.0, 0.0, one_class, classes)
    single = pgd(threat, steps=1, step_size=1.25 * eps, clamp_start=False, seed=seed)
    many = pgd(threat, steps=_PGD_STEPS, step_size=eps / 4, restarts=restarts, seed=seed)
    return Seen(
        clean=doubles.doubled(predictions == y).mean().item(),
        single_step=_robust_accuracy(single, model, x, y, batch_size),
        pgd=_robust_accuracy(many, model, x, y, batch_size),
        one_class=one_class,
        classes=classes,
    )


def _robust_accuracy(
    attack: Attack, model: Any, x: torch.Tensor, y: torch.Tensor, batch_size: int
) -> float:
    fallen, ids = [], torch.arange(len(x), device=x.device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AttackWarning)  # a collapsed network has such gradients
        for first in range(0, len(x), batch_size):
            rows = slice(first, first + batch_size)
            fallen.append(attack.run(model, x[rows], y[rows], sample_ids=ids[rows]).success)
    return 1.0 - doubles.doubled(torch.cat(fallen)).mean().item()
