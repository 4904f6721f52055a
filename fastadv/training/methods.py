"""The training steps that are watched and recorded, and what is none of them."""

from typing import Any

from fastadv.training.free import FreeAT
from fastadv.training.step import CraftedStep
from fastadv.training.yopo import YOPO

Step = CraftedStep | FreeAT | YOPO


def check_step(step: Any) -> None:
    """Raises TypeError for what is no training step, such as an attack, a class or a name."""
    if isinstance(step, Step):
        return
    inner = getattr(step, "step", None)
    hint = ": give the step that it records, its .step" if isinstance(inner, Step) else ""
    raise TypeError(
        "step must be one of fastadv.training: FastAT, NFGSM, PGDAT, TRADES, MART, FreeAT, "
        f"YOPO; got {step!r}{hint}"
    )


def check_watched(step: Any) -> None:
    """Raises for what is no training step, and for one whose accuracy is not that of classes."""
    check_step(step)
    objective = getattr(step, "objective", None)
    if objective is not None:
        raise ValueError(
            "a Sentinel compares accuracies of class labels, clean, under one step and under PGD; "
            f"got a step with loss={objective!r}. Watch fastadv.evaluate on held-out samples"
        )
