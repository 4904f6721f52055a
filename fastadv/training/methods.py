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
