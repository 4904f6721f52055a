"""Notices while an attack runs that the model has lost its gradient at the bounds."""

import numpy as np
import torch

from fastadv import outputs
from fastadv.engine.plain import Inspect
from fastadv.engine.work import Extra
from fastadv.kernels import slots as columns
from fastadv.oracle.gradient import Oracle

_LOOKED_AT = 64  # samples of the second look
_KEPT = (columns.KEPT_AT_LOW, columns.KEPT_AT_HIGH)
_LOST = (columns.LOST_AT_LOW, columns.LOST_AT_HIGH)


class GradientLostError(Exception):
    """The oracle moves entries inside the bounds from now on: what was found before is to be found
    again."""


class BoundsWatch:
    """Watches one call. is_open: nothing is decided yet.

    A bound where gradients are kept is none that the model clamps at. The first gradients that are
    lost at another call for a second look, which decides; it is made only then.
    """

    def __init__(self, oracle: Oracle, inset: float | None) -> None:
        self._oracle = oracle
        self._kept = 0
        self.extra: Extra = ()  # what the model takes beside x, of all samples
        self.is_open: bool = inset is None and oracle.bounds is not None

    @property
    def inspect(self) -> Inspect | None:
        """For the engine; None once all is decided."""
        return self._inspect if self.is_open else None

    def _inspect(
        self, iterates: torch.Tensor, faults: np.ndarray, rows: np.ndarray, samples: np.ndarray
    ) -> bool:
        """Whether one of the bounds has not been heard of. Raises GradientLostError."""
        if not self.is_open:
            return False
        marks = faults[rows]
        self._kept |= int(np.bitwise_or.reduce(marks, initial=0))
        bounds = zip(_KEPT, _LOST, strict=True)
        suspect = sum(lost for kept, lost in bounds if not self._kept & kept)
        lost = np.flatnonzero(marks & suspect)[:_LOOKED_AT]
        if len(lost):
            self.is_open = False
            self._look_again(iterates.detach(), rows[lost], samples[lost])
            if self._oracle.inset:
                raise GradientLostError
        heard = [bool(self._kept & kept) for kept in _KEPT]
        self.is_open &= not all(heard)
        return self.is_open

    def _look_again(self, iterates: torch.Tensor, rows: np.ndarray, samples: np.ndarray) -> None:
        """At these rows; of a model that is tied to whole batches, at the batch of the first."""
        where = torch.as_tensor(np.stack([rows, samples]), device=iterates.device)
        extra = tuple(part.index_select(0, where[1]) for part in self.extra)
        try:
            self._oracle.find_inset(iterates.index_select(0, where[0]), extra)
        except outputs.OF_SIZES:
            first = rows[0] // self._oracle.whole * self._oracle.whole
            batch = iterates[first : first + self._oracle.whole]
            if extra or len(batch) == len(rows):
                raise
            self._oracle.find_inset(batch)
