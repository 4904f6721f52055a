"""A network that was left in eval mode is trained otherwise than was meant: said once a step."""

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from fastadv.diagnostics import emit
from fastadv.reach import every_module
from fastadv.training.verdict import TrainingWarning


def warn_of_eval_mode(step: Any, model: Any) -> None:
    """Warns, once for each step, of a module in eval mode whose layers behave otherwise there.

    Networks without such layers are the same in both modes, and one whose normalisation alone is
    in eval mode was put there on purpose. Costs an attribute a batch.
    """
    if getattr(model, "training", True) or getattr(step, "_has_said_mode", False):
        return
    step._has_said_mode = True
    if not isinstance(model, nn.Module):
        return
    modules = every_module(model)
    norms = sum(isinstance(m, _NormBase) and m.track_running_stats for m in modules)
    drops = sum(isinstance(m, _DropoutNd) and m.p > 0 for m in modules)
    told = [
        *([f"{norms} that keep statistics use the old ones and do not move them"] if norms else []),
        *([f"{drops} that drop out do nothing"] if drops else []),
    ]
    if told:
        emit(
            TrainingWarning(
                "eval",
                f"eval mode: the {type(model).__name__} is trained in it, and of its layers "
                f"{', and '.join(told)}. Call model.train() after each evaluation of your own",
            )
        )
