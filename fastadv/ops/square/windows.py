"""Windows of flat images in numpy: their elements, copies, and what L-infinity proposes in them."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch


@functools.lru_cache(256)
def _window(side: int, channels: int, height: int, width: int, channels_last: bool) -> np.ndarray:
    """(C * side * side, 1), one channel after the other: a window's elements from its corner."""
    line, column = (a.ravel() for a in np.mgrid[:side, :side])
    c = np.repeat(np.arange(channels), side * side)
    pixel = np.tile(line * width + column, channels)
    offset = pixel * channels + c if channels_last else c * (height * width) + pixel
    return offset[:, None]


def _flat(tensor: torch.Tensor) -> np.ndarray:
    """The elements in memory order, as a view."""
    if tensor.requires_grad:
        tensor = tensor.detach()
    if not tensor.is_contiguous():
        tensor = tensor.permute(0, 2, 3, 1)
    return tensor.numpy().ravel()


def _by_side(sides: np.ndarray) -> Sequence[tuple[int, slice | np.ndarray]]:
    """(side, which rows have it), for each side."""
    if not len(sides):
        return ()
    first = sides[0]
    if not np.count_nonzero(sides != first):
        return ((int(first), slice(None)),)
    return [(int(side), (sides == side).nonzero()[0]) for side in np.unique(sides)]


class Windows:
    """The images of one step, flat, and the windows that its table says."""

    def __init__(
        self,
        x_new: torch.Tensor,
        x_best: torch.Tensor,
        x: torch.Tensor,
        geometry: torch.Tensor,
        signs: torch.Tensor,
        eps: float,
        eps_rows: torch.Tensor | None,
        lo: float,
        hi: float,
    ) -> None:
        self.new: np.ndarray = _flat(x_new)
        self.best: np.ndarray = _flat(x_best)
        self.clean: np.ndarray = _flat(x)
        self.shape: torch.Size = x.shape[1:]
        self.channels_last: bool = not x_best.is_contiguous()
        self.channels: int = self.shape[0]
        self.width: int = self.shape[2]
        self.size: int = self.shape.numel()
        self.table: np.ndarray = geometry.numpy()
        self.signs: np.ndarray = signs.numpy()
        self.dtype: type[np.floating[Any]] = np.float64 if x.dtype is torch.float64 else np.float32
        self.eps: np.ndarray = np.asarray(eps if eps_rows is None else eps_rows.numpy(), self.dtype)
        self.lo, self.hi = self.dtype(lo), self.dtype(hi)

    def elements(
        self, index: np.ndarray, row: np.ndarray
    ) -> Iterator[tuple[slice | np.ndarray, np.ndarray]]:
        """(which pairs, elements (C * side * side, m)) by side: of windows `index` in images `row`.

        Windows are columns: numpy reduces the first of two axes faster than a short second one.
        """
        geometry = self.table.take(index, 0)
        corner = geometry[:, 0] * self.width + geometry[:, 1]
        if self.channels_last:
            corner *= self.channels
        corner = corner + row * self.size
        for side, which in _by_side(geometry[:, 2]):
            yield which, corner[which] + _window(side, *self.shape, self.channels_last)

    def proposals(
        self, index: np.ndarray, slot: np.ndarray
    ) -> Iterator[tuple[slice | np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
        """(which pairs, elements, what they would become, whether any changes), by side."""
        for which, element in self.elements(index, slot):
            at_best = self.best.take(element)
            eps = self.eps.take(slot[which]) if self.eps.ndim else self.eps
            step = 2 * eps * self.signs.take(index[which], 0).T.astype(self.dtype)
            best = at_best.astype(self.dtype, copy=False).reshape(self.channels, -1, step.shape[1])
            x = self.clean.take(element).astype(self.dtype, copy=False).reshape(best.shape)
            # the authors' order; numpy keeps NaN as torch does
            moved = best + step[:, None]
            np.maximum(moved, x - eps, out=moved)
            np.minimum(moved, x + eps, out=moved)
            moved.clip(self.lo, self.hi, moved)
            stored = moved.reshape(at_best.shape).astype(at_best.dtype, copy=False)
            yield which, element, stored, np.logical_or.reduce(stored != at_best, 0)

    def copy(
        self,
        index: np.ndarray,
        to: np.ndarray,
        to_row: np.ndarray,
        of: np.ndarray,
        of_row: np.ndarray,
    ) -> None:
        """The windows `index` of images `of_row` to the same places of images `to_row`."""
        shift = (to_row - of_row) * self.size
        for which, element in self.elements(index, of_row):
            to[element + shift[which]] = of.take(element)
