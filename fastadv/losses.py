"""Losses by name, as callables (logits, y) -> (B,) or objectives, and where each is defined."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

import torch

from fastadv.objective import Objective, uncalled
from fastadv.ops.heads.arguments import KINDS, Kind, LossName

LossFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

_NEEDS_LABELS_WHEN_TARGETED = ("dlr", "difference")


@dataclass(frozen=True)
class Loss:
    """A loss as the engine runs it: a head kind with its parameter, or a callable or an objective
    (kind "none")."""

    kind: Kind
    parameter: float = 0.0
    function: LossFunction | None = None
    objective: Objective | None = None

    @property
    def is_named(self) -> bool:
        """Whether the loss head computes it."""
        return self.function is None and self.objective is None

    @property
    def needs_reference(self) -> bool:
        return self.kind == "kl"

    @property
    def needs_labels_when_targeted(self) -> bool:
        return self.kind in _NEEDS_LABELS_WHEN_TARGETED


UNCAPPED_MARGIN = Loss("margin", math.inf)  # max_{j != y} z_j - z_y, whatever its sign


def resolve(
    loss: LossName | LossFunction | Objective, *, kappa: float, label_smoothing: float
) -> Loss:
    """The Loss of a name, callable or objective; ValueError for an unknown name or a misplaced
    option."""
    if kappa and loss != "margin":
        raise ValueError(f"kappa={kappa:g} belongs to loss='margin'; got loss={loss!r}")
    if label_smoothing and loss != "ce":
        raise ValueError(f"label_smoothing={label_smoothing:g} belongs to loss='ce'; got {loss!r}")
    if not 0 <= label_smoothing < 1 or not 0 <= kappa < math.inf:
        raise ValueError(
            "kappa must be >= 0 and finite, label_smoothing in [0, 1); got "
            f"{kappa=}, {label_smoothing=}"
        )
    if isinstance(loss, str):
        if loss not in get_args(LossName):
            raise ValueError(
                f"loss must be one of {get_args(LossName)} or a callable; got {loss!r}"
            )
        return Loss(KINDS[loss], kappa if loss == "margin" else label_smoothing)
    if isinstance(loss, Objective):
        return Loss("none", objective=loss)
    if forgotten := uncalled(loss):
        raise TypeError(forgotten)
    if not callable(loss):
        raise TypeError(f"loss must be one of {get_args(LossName)} or a callable; got {loss!r}")
    return Loss("none", 0.0, loss)


def check_classes(loss: Loss, classes: int, *, targeted: bool) -> None:
    """Raises ValueError where `loss` is undefined, naming the one to use instead."""
    if classes < 2:
        raise ValueError(
            f"the model must return (B, C) logits with C >= 2; got C = {classes}. One logit for "
            "two classes is judged by fastadv.objectives.binary(), which fastadv.pgd and others "
            "take as loss="
        )
    needed = 4 if targeted else 3
    if loss.kind == "dlr" and classes < needed:
        raise ValueError(
            f"loss='dlr' needs at least {needed} classes{' when targeted' if targeted else ''}; "
            f"the model has {classes}: use loss='margin'"
        )
    if loss.kind == "ratio" and classes < needed:
        raise ValueError(
            f"the ratio of logits needs at least {needed} classes{' when targeted' * targeted}; "
            f"the model has {classes}: use fastadv.ddn or fastadv.fmn"
        )
    if loss.kind == "difference" and not targeted:
        raise ValueError(
            "loss='difference' is L(y) - L(target): give target=, or use loss='margin'"
        )
    if loss.kind == "kl" and targeted:
        raise ValueError("loss='kl' moves away from the clean output and takes no target=")


def check_logits(logits: object, x: torch.Tensor) -> None:
    """Raises ValueError unless `logits`, a model's output at x, are (B, C)."""
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or len(logits) != len(x):
        got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ValueError(
            f"the model must return (B, C) logits, here ({len(x)}, C); got {got}. Wrap it to "
            "return its logits alone; any other output is judged by a fastadv.Objective, which "
            "fastadv.pgd and others take as loss="
        )


def check_rows(output: torch.Tensor, x: torch.Tensor) -> None:
    """Raises ValueError unless `output`, a model's at x, has a row a sample: all that is asked of
    it where an objective judges."""
    if output.shape[:1] != x.shape[:1]:
        raise ValueError(
            f"the model must return a row a sample, ({len(x)}, ...); got {tuple(output.shape)}. "
            "Wrap it to return what the objective takes"
        )
