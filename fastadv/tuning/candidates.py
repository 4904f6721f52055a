"""What may be tried in place of the default: copies of a model that answer as it does, and sizes.

A variant is an `Execution` without a batch size; a candidate one with it.
"""

from collections.abc import Sequence

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from fastadv import memory, outputs, reach
from fastadv.execution import Execution
from fastadv.isolation import Model, module_of
from fastadv.oracle.shadow.search_model import search_model

EXACT = Execution()
_LEAST = 8  # rows: smaller batches have never been the fastest
_MOST = {"cpu": 1024}  # beyond, activations leave every cache
_MOST_ELSEWHERE = 4096


def is_copyable(model: Model) -> bool:
    """Whether there may be a copy of it: not of a plain function."""
    return module_of(model) is not None


def folds(model: Model) -> bool:
    """Whether it has a BatchNorm that may be folded."""
    return any(isinstance(module, _BatchNorm) for module in reach.every_module(model))


def sizes_for(x: torch.Tensor, rows: int, most: int | None) -> list[int]:
    """Batch sizes to try, ascending, `rows` among them. most: no larger ones, but for `rows`."""
    limit = _MOST.get(x.device.type, _MOST_ELSEWHERE)
    limit = limit if most is None else min(limit, most)
    powers, size = {rows}, _LEAST
    while size <= limit:
        powers.add(size)
        size *= 2
    if most is not None and most <= limit:
        powers.add(most)
    return sorted(powers)


class Shadows:
    """The variants of `model` that answer as it does at x, made when they are asked for.

    x, extra: samples on which they are checked; rows: how many of them are. notes: why one cannot
    be had. off: the largest difference of its logits from the model's.
    """

    def __init__(self, model: Model, x: torch.Tensor, extra: tuple[torch.Tensor, ...]) -> None:
        self.notes: dict[Execution, str] = {}
        self.off: dict[Execution, float] = {EXACT: 0.0}
        self.model, self.x, self.rows = model, x, len(x)
        self._extra = extra
        self._made: dict[Execution, Model] = {EXACT: lambda x, *more: _own(model, x, more)}

    def of(self, variant: Execution) -> Model | None:
        """What it runs, None if it cannot be had; must be called inside `isolated(model)`."""
        if variant not in self._made and variant not in self.notes:
            try:
                self._make(variant)
            except Exception as error:  # whatever the user's model does when it is copied
                memory.free_cached(self.x.device)
                self.notes[variant] = " ".join(f"{type(error).__name__}: {error}".split())
        return self._made.get(variant)

    def _make(self, variant: Execution) -> None:
        if variant.precision == "fp16" and self.x.device.type == "cpu":
            self.notes[variant] = "fp16 is emulated on CPUs, and many times slower"
            return
        x, extra = self.x[: self.rows], tuple(part[: self.rows] for part in self._extra)
        with torch.no_grad():
            own = _own(self.model, x.clone(), extra)
        search = search_model(
            self.model,
            precision=variant.precision,
            channels_last=variant.channels_last,
            fold_batchnorm=variant.fold_batchnorm,
            compile=variant.compile,
            x=x,
            logits=own,
            extra=extra,
        )
        if search.notes:
            self.notes[variant] = search.notes[0]
            return
        with torch.no_grad():
            logits = search.forward(x.clone(), *extra)
        apart = (logits.float() - own.float()).abs()
        self.off[variant] = float(apart.masked_fill(logits == own, 0.0).max())  # infinite ones too
        self._made[variant] = search.forward


def _own(model: Model, x: torch.Tensor, extra: Sequence[torch.Tensor]) -> torch.Tensor:
    return outputs.logits_in(model(x, *extra), x)
