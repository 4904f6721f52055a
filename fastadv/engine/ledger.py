"""Keeps the best finished item of each sample, whatever the order of their arrival."""

import numpy as np
import torch

from fastadv.kernels import slots as columns

_NO_RESTART = np.iinfo(np.int32).max


class Ledger:
    """Results of n samples, x_adv on their device and the scalars on the host.

    settles: a successful restart beats every unsuccessful one, the lowest restart winning. Among
    the others, or all if not settles, the highest loss wins, then the lowest restart.
    """

    def __init__(self, x: torch.Tensor, *, settles: bool) -> None:
        n = len(x)
        self._settles = settles
        self.x_adv = x.clone(memory_format=torch.preserve_format)
        self.step = np.full(n, -1, dtype=np.int32)
        self.faults = np.zeros(n, dtype=np.int32)
        self._fooled_by = np.full(n, _NO_RESTART, dtype=np.int32)
        self._loss = np.full(n, -np.inf)
        self._restart = np.full(n, _NO_RESTART, dtype=np.int32)

    def is_settled(self, sample: int, restart: int) -> bool:
        """True if an earlier restart has fooled the model: this one cannot change the result."""
        return bool(self._fooled_by[sample] < restart)

    def record(
        self, samples: np.ndarray, restarts: np.ndarray, flags: np.ndarray, losses: np.ndarray,
        iterates: torch.Tensor,
    ) -> None:  # fmt: skip
        """Enter finished items, one row each; flags: (k, 5) as in `fastadv.kernels.slots`."""
        winners: dict[int, int] = {}
        losses = np.nan_to_num(losses, nan=-np.inf, posinf=np.inf, neginf=-np.inf)
        for k, (sample, restart) in enumerate(zip(samples, restarts, strict=True)):
            self.faults[sample] |= flags[k, columns.FAULT]
            step, loss = flags[k, columns.SUCCESS_STEP], losses[k]
            if self._settles and step >= 0:
                if restart >= self._fooled_by[sample]:
                    continue
                self._fooled_by[sample] = restart
            else:
                ranks = (loss, -restart) > (self._loss[sample], -self._restart[sample])
                if self._fooled_by[sample] != _NO_RESTART or not ranks:
                    continue
                self._loss[sample], self._restart[sample] = loss, restart
            self.step[sample] = step
            winners[int(sample)] = k
        if winners:
            device = self.x_adv.device
            to = torch.tensor(list(winners), device=device)
            rows = torch.tensor(list(winners.values()), device=device)
            self.x_adv.index_copy_(0, to, iterates.index_select(0, rows))
