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
        # of searches for the nearest point: the step of x_adv
        self.nearest_step: np.ndarray = np.full(n, -1, dtype=np.int32)
        self._item = np.full(n, _NO_ITEM, dtype=np.int32)
        self._is_entered = np.zeros((n, 1), dtype=bool)  # by sample and item
        self.entered = np.zeros(n, dtype=np.int32)  # items of each sample

    @property
    def has_fallen(self) -> np.ndarray:
        """(n,) bool: samples whose result no further item is needed for."""
        return self._fooled_by != _NO_ITEM

    def are_settled(self, samples: np.ndarray, items: np.ndarray | int) -> np.ndarray:
        """(k,) bool: items that cannot change the result, because an earlier one has fooled the
        model, or they have been entered. samples: (k,); items: theirs, or one for all."""
        self._widen(items)
        return (self._fooled_by[samples] < items) | self._is_entered[samples, items]

    def forget(self, samples: np.ndarray) -> None:
        """Take back what was entered for `samples`, which are to be attacked again."""
        self.step[samples] = -1
        self.faults[samples] = self.entered[samples] = 0
        self._fooled_by[samples] = self._item[samples] = _NO_ITEM
        self.loss[samples] = -np.inf
        self._is_entered[samples] = False

    def record(
        self,
        samples: np.ndarray,
        items: np.ndarray,
        flags: np.ndarray,
        losses: np.ndarray,
        iterates: torch.Tensor,
        rows: np.ndarray | None = None,
    ) -> None:
        """Enter k finished items, one after another; flags: (k, 5) as in `fastadv.kernels.slots`.

        rows: which of the iterates are theirs, the first k if None.
        """
        losses = np.nan_to_num(losses, nan=-np.inf, posinf=np.inf, neginf=-np.inf)
        self._widen(items)
        distinct, which = np.unique(samples, return_inverse=True)
        winner = np.full(len(distinct), -1)
        for part in _apart(which):  # no sample twice
            won = part[self._enter(samples[part], items[part], flags[part], losses[part])]
            winner[which[won]] = won
        is_won = winner >= 0
        if is_won.any():
            found = winner[is_won] if rows is None else rows[winner[is_won]]
            moves = torch.as_tensor(np.stack([distinct[is_won], found]), device=self.x_adv.device)
            self.x_adv.index_copy_(0, moves[0], iterates.index_select(0, moves[1]))

    def _enter(
        self, samples: np.ndarray, items: np.ndarray, flags: np.ndarray, losses: np.ndarray
    ) -> np.ndarray:
        """Enter items of distinct samples; (k,) bool, which are the best of theirs so far."""
        self._is_entered[samples, items] = True
        self.entered[samples] += 1
        self.faults[samples] |= flags[:, columns.FAULT]
        steps = flags[:, columns.SUCCESS_STEP]
        settles = (steps >= 0) if self._settles else np.zeros(len(steps), dtype=bool)
        best, loss = self._fooled_by[samples], self.loss[samples]
        ranks = (losses > loss) | ((losses == loss) & (items < self._item[samples]))
        ranks &= ~settles & (best == _NO_ITEM)
        settles &= items < best
        self._fooled_by[samples[settles]] = items[settles]
        self.loss[samples[ranks]] = losses[ranks]
        self._item[samples[ranks]] = items[ranks]
        won = settles | ranks
        self.step[samples[won]] = steps[won]
        self.nearest_step[samples[won]] = flags[won, columns.NEAREST_STEP]
        return won

    def _widen(self, items: np.ndarray | int) -> None:
        """Make room for the items of these numbers."""
        lacking = int(np.max(items, initial=0)) + 1 - self._is_entered.shape[1]
        if lacking > 0:
            self._is_entered = np.pad(self._is_entered, ((0, 0), (0, lacking)))


def _apart(which: np.ndarray) -> list[np.ndarray]:
    """Positions in parts in which no value of `which` comes twice: its first ones, its second."""
    order = np.argsort(which, kind="stable")
    ordered = which[order]
    first = np.searchsorted(ordered, ordered)  # where its value begins
    nth = np.empty(len(which), dtype=np.int64)
    nth[order] = np.arange(len(which)) - first
    return [np.flatnonzero(nth == n) for n in range(int(nth.max(initial=-1)) + 1)]
