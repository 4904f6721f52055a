"""Keeps the best finished item of each sample, whatever the order of their arrival."""

import numpy as np
import torch

from fastadv.kernels import slots as columns

_NO_ITEM = np.iinfo(np.int32).max


class Ledger:
    """Results of n samples, x_adv on their device and the scalars on the host.

    settles: a successful item beats every unsuccessful one, the lowest item winning. Among
    the others, or all if not settles, the highest loss wins, then the lowest item.
    """

    def __init__(self, x: torch.Tensor, *, settles: bool) -> None:
        n = len(x)
        self._settles = settles
        self.x_adv: torch.Tensor = x.clone(memory_format=torch.preserve_format)
        self.step: np.ndarray = np.full(n, -1, dtype=np.int32)
        self.faults: np.ndarray = np.zeros(n, dtype=np.int32)
        self._fooled_by = np.full(n, _NO_ITEM, dtype=np.int32)
        # the highest that an item without success reached
        self.loss: np.ndarray = np.full(n, -np.inf)
        self._item = np.full(n, _NO_ITEM, dtype=np.int32)
        self._entered: set[tuple[int, int]] = set()
        self.entered = np.zeros(n, dtype=np.int32)  # items of each sample

    @property
    def has_fallen(self) -> np.ndarray:
        """(n,) bool: samples whose result no further item is needed for."""
        return self._fooled_by != _NO_ITEM

    def is_settled(self, sample: int, item: int) -> bool:
        """True if this item cannot change the result: an earlier one has fooled the model, or it
        has been entered."""
        return bool(self._fooled_by[sample] < item) or (int(sample), int(item)) in self._entered

    def forget(self, samples: np.ndarray) -> None:
        """Take back what was entered for `samples`, which are to be attacked again."""
        self.step[samples] = -1
        self.faults[samples] = self.entered[samples] = 0
        self._fooled_by[samples] = self._item[samples] = _NO_ITEM
        self.loss[samples] = -np.inf
        gone = {int(sample) for sample in samples}
        self._entered = {entry for entry in self._entered if entry[0] not in gone}

    def record(
        self,
        samples: np.ndarray,
        items: np.ndarray,
        flags: np.ndarray,
        losses: np.ndarray,
        iterates: torch.Tensor,
    ) -> None:
        """Enter finished items, one row each; flags: (k, 5) as in `fastadv.kernels.slots`."""
        winners: dict[int, int] = {}
        losses = np.nan_to_num(losses, nan=-np.inf, posinf=np.inf, neginf=-np.inf)
        for k, (sample, item) in enumerate(zip(samples, items, strict=True)):
            self._entered.add((int(sample), int(item)))
            self.entered[sample] += 1
            self.faults[sample] |= flags[k, columns.FAULT]
            step, loss = flags[k, columns.SUCCESS_STEP], losses[k]
            if self._settles and step >= 0:
                if item >= self._fooled_by[sample]:
                    continue
                self._fooled_by[sample] = item
            else:
                ranks = (loss, -item) > (self.loss[sample], -self._item[sample])
                if self._fooled_by[sample] != _NO_ITEM or not ranks:
                    continue
                self.loss[sample], self._item[sample] = loss, item
            self.step[sample] = step
            winners[int(sample)] = k
        if winners:
            device = self.x_adv.device
            to = torch.tensor(list(winners), device=device)
            rows = torch.tensor(list(winners.values()), device=device)
            self.x_adv.index_copy_(0, to, iterates.index_select(0, rows))
