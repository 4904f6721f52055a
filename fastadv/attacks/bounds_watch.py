"""Notices while an attack runs that the model has lost its gradient at the bounds."""

import numpy as np
import torch

from fastadv.engine.plain import Inspect
from fastadv.gradient import Oracle
from fastadv.kernels import slots as columns

_LOOKED_AT = 64  # samples of the second look


class GradientLostError(Exception):
    """The oracle moves entries inside the bounds from now on: what was found before is to be found
    again."""


class BoundsWatch:
    """Watches one call. is_open: nothing is decided yet.

    The first gradients that tell anything decide. If they are lost at the bounds, a second look
    says whether the model clamps; it is made only then.
    """

    def __init__(self, oracle: Oracle, inset: float | None) -> None:
        self._oracle = oracle
        self.is_open = inset is None and oracle.bounds is not None

    @property
    def inspect(self) -> Inspect | None:
        """For the engine; None once all is decided."""
        return self._inspect if self.is_open else None

    def _inspect(self, iterates: torch.Tensor, faults: np.ndarray, rows: np.ndarray) -> bool:
        """Whether no gradient so far has told anything. Raises GradientLostError."""
        if not self.is_open:
            return False
        marks = faults[rows]
        lost = rows[marks & columns.BOUNDS_LOSE != 0][:_LOOKED_AT]
        if len(lost):
            self.is_open = False
            index = torch.as_tensor(lost, device=iterates.device)
            self._oracle.find_inset(iterates.detach().index_select(0, index))
            if self._oracle.inset:
                raise GradientLostError
        elif bool((marks & columns.BOUNDS_TELL).any()):
            self.is_open = False
        return self.is_open
