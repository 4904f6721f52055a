"""Accuracy of held-out training samples after each epoch, clean and under PGD."""

import warnings
from dataclasses import dataclass

import torch
from torch import nn

from fastadv.attacks import Attack, pgd
from fastadv.data import to_unit_interval
from fastadv.diagnostics import AttackWarning
from fastadv.evaluation import evaluate
from fastadv.evaluation.accuracy import logits_of
from fastadv.threat_model import ThreatModel

_STEPS = 10
_BATCH_SIZE = 500


@dataclass(frozen=True)
class HeldOut:
    """x: (n, C, H, W) in [0, 1], y: (n,), on the device of the network; attack: PGD-10."""

    x: torch.Tensor
    y: torch.Tensor
    attack: Attack

    @classmethod
    def of(
        cls, images: torch.Tensor, labels: torch.Tensor, *, threat: ThreatModel, seed: int
    ) -> "HeldOut":
        step_size = float(threat.eps) / 4
        attack = pgd(threat, steps=_STEPS, step_size=step_size, seed=seed)
        return cls(to_unit_interval(images), labels, attack)

    def accuracies(self, model: nn.Module) -> tuple[float, float]:
        """(clean, robust), in [0, 1]; a network of NaNs has 0."""
        if bool(logits_of(model, self.x, batch_size=_BATCH_SIZE).isnan().any()):
            return 0.0, 0.0  # which `evaluate` refuses
        with warnings.catch_warnings():
            # a network that is stuck or collapsing gives such gradients: the sentinel says so
            warnings.simplefilter("ignore", AttackWarning)
            report = evaluate(
                model, (self.x, self.y), self.attack, batch_size=_BATCH_SIZE, progress=False
            )
        return report.clean_accuracy, report.robust_accuracy
