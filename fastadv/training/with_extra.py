"""A model with the inputs that it takes beside x, `extra=`."""

import torch

from fastadv.isolation import Model

Extra = tuple[torch.Tensor, ...]


class WithExtra:
    """x -> model(x, *extra); extra: tensors with a row a sample, (B, ...)."""

    def __init__(self, model: Model, extra: Extra) -> None:
        self.model = model
        self.extra = extra

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x, *self.extra)


def with_extra(model: Model, extra: Extra) -> Model:
    """The model as a function of x alone; itself where it takes nothing else."""
    return WithExtra(model, extra) if extra else model


def of_rows(model: Model, rows: torch.Tensor) -> Model:
    """The model as it answers to x.index_select(0, rows) only."""
    if not isinstance(model, WithExtra):
        return model
    return WithExtra(model.model, tuple(e.index_select(0, rows) for e in model.extra))
