"""The tensors that a recorded training step reads its batch from and leaves its losses in."""

import itertools
from typing import Any

import torch

from fastadv.training import arguments, draws
from fastadv.training.with_extra import Extra

_SERIAL = itertools.count()


class HeldBatch:
    """The tensors that the recordings of one shape read and write; `serial` is theirs alone.

    labels: the dtype in which y is held. extra: what the model is given beside x. mask: of the
    dimensions of x, None where all of it may move.
    """

    def __init__(
        self,
        x: torch.Tensor,
        y: torch.Tensor,
        sample_ids: torch.Tensor | None,
        labels: torch.dtype = torch.int64,
        extra: Extra = (),
        mask: torch.Tensor | None = None,
    ) -> None:
        self.serial: int = next(_SERIAL)
        self.x: torch.Tensor = torch.empty_like(x, requires_grad=False)
        self.y: torch.Tensor = torch.empty_like(y, dtype=labels, requires_grad=False)
        self.extra: Extra = tuple(torch.empty_like(e, requires_grad=False) for e in extra)
        self.mask: torch.Tensor | None = None if mask is None else torch.empty_like(mask)
        self.sample_ids: torch.Tensor | None = None
        if sample_ids is not None:
            self.sample_ids = torch.empty(x.shape[:1], dtype=torch.int64, device=x.device)
        self.draws: torch.Tensor = torch.zeros(x.shape[:1], dtype=torch.int32, device=x.device)
        self.losses: dict[str, torch.Tensor] = {}

    def fill(
        self,
        x: torch.Tensor,
        y: torch.Tensor,
        sample_ids: torch.Tensor | None,
        batch: int,
        extra: Extra = (),
        mask: torch.Tensor | None = None,
    ) -> None:
        """Write a batch, and the number by which its noise is drawn."""
        self.x.copy_(x.detach())
        self.y.copy_(y.detach())
        for held, given in zip(self.extra, extra, strict=True):
            held.copy_(given.detach())
        if self.mask is not None and mask is not None:
            self.mask.copy_(mask)
        if self.sample_ids is not None and sample_ids is not None:
            self.sample_ids.copy_(arguments.sample_ids(sample_ids, x, needed=False))
        self.draws.fill_(draws.number(batch))

    def keep(self, step: Any) -> None:
        """Copy the losses of the step, which lie in the graph's memory, to where they stay."""
        for name in ("train_loss", "craft_loss"):
            value = getattr(step, name, None)
            if value is not None:
                if name not in self.losses:  # in the first real step
                    self.losses[name] = torch.empty_like(value)
                self.losses[name].copy_(value)

    def give(self, step: Any) -> None:
        """Losses that the next replay does not write."""
        for name, value in self.losses.items():
            setattr(step, name, value.clone())


class BatchCount:
    """What a step counts on the host."""

    def __init__(self, step: Any) -> None:
        self._step = step

    def read(self) -> tuple[int, ...]:
        return (self._step.batches,)

    def write(self, values: tuple[int, ...]) -> None:
        (self._step.batches,) = values
