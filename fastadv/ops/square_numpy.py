"""The L-infinity Square Attack step on CPUs: numpy on the windows alone, all slots at once.

A window late in the attack holds some twenty elements; an image pass costs a hundred times that.
"""

import functools

import numpy as np
import torch

from fastadv.kernels import slots as columns

_ELEMENTS_AT_ONCE = 16384  # tested in one round: numpy's calls cost as much as 10,000 elements
_CANDIDATE = 28  # what a candidate costs beside its window's elements, in elements
_MOST_AHEAD = 64  # candidates of a slot in one round


@functools.lru_cache(256)
def _window(
    side: int, channels: int, height: int, width: int, channels_last: bool
) -> tuple[np.ndarray, np.ndarray]:
    """(offsets of a window's elements from its corner, their channels)."""
    line, column = (a.ravel() for a in np.mgrid[:side, :side])
    c = np.repeat(np.arange(channels), side * side)
    pixel = np.tile(line * width + column, channels)
    return (pixel * channels + c if channels_last else c * (height * width) + pixel), c


class _Images:
    """Flat images and the elements of their windows."""

    def __init__(self, shape: torch.Size, channels_last: bool) -> None:
        self.shape, self.channels_last = shape[1:], channels_last
        self.size = shape[1] * shape[2] * shape[3]
        self.pixel = shape[1] if channels_last else 1

    def elements(self, side: int, corner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(elements (C * side * side, m) in the image, their channels) of m windows of a side.

        Windows are columns: numpy reduces the first of two axes faster than a short second one.
        """
        offset, channel = _window(side, *self.shape, self.channels_last)
        start = (corner[:, 0].astype(np.int64) * self.shape[2] + corner[:, 1]) * self.pixel
        return start + offset[:, None], channel


def _flat(tensor: torch.Tensor) -> np.ndarray:
    """The elements in memory order, as a view."""
    if tensor.is_contiguous():
        return tensor.detach().numpy().reshape(-1)
    return tensor.detach().permute(0, 2, 3, 1).numpy().reshape(-1)


def _by_side(geometry: np.ndarray):
    """(side, which rows have it), for each side."""
    sides = geometry[:, 2]
    first = sides[0] if len(sides) else 0
    if (sides == first).all():
        if len(sides):
            yield int(first), slice(None)
        return
    for side in np.unique(sides):
        yield int(side), np.flatnonzero(sides == side)


def _copy_windows(
    images: _Images, geometry: np.ndarray, to: np.ndarray, to_row: np.ndarray, of: np.ndarray,
    of_row: np.ndarray,
) -> None:  # fmt: skip
    for side, rows in _by_side(geometry):
        element, _ = images.elements(side, geometry[rows])
        source = of[of_row[rows] * images.size + element]
        to[to_row[rows] * images.size + element] = source


def _accept(loss, prediction, labels, best_loss, queries, wasted, slots, count):
    """(slots that go on, all accepted: slot, row, query; cursor of every slot)."""
    active = slots[:, columns.ACTIVE] != 0
    valid = (queries < count) & active[:, None]
    nan = np.isnan(loss)
    wrong = (prediction != labels[:, None]) & ~nan
    takes = valid & ((loss > best_loss[:, None]) | wrong)
    width = queries.shape[1]
    taken = np.where(takes.any(1), takes.argmax(1), width)
    considered = valid & (np.arange(width) <= taken[:, None])
    last = np.where(considered, queries, -2).max(1)
    last = np.where(considered.any(1), last, count - 1)
    slot = np.flatnonzero(taken < width)
    row = taken[slot]
    best_loss[slot] = loss[slot, row]
    wasted += (valid & ~considered).sum(1, dtype=wasted.dtype)
    fault = (considered & nan).any(1)
    slots[fault, columns.FAULT] |= columns.FAULT_NAN_LOGITS
    fooled = slot[wrong[slot, row]]
    slots[fooled, columns.SUCCESS_STEP] = slots[fooled, columns.STEP] = last[fooled] + 1
    slots[fooled, columns.ACTIVE] = 0
    active[fooled] = False
    return np.flatnonzero(active), slot, row, last[slot], last + 1


def _propose(best, x, sign, eps, lo, hi):
    """The authors' order of operations; numpy's maximum and minimum keep NaN as torch's do."""
    moved = np.minimum(np.maximum(best + 2 * eps * sign, x - eps), x + eps)
    return np.minimum(np.maximum(moved, lo), hi)


def square_linf(
    x_new, x_best, x, loss, prediction, labels, best_loss, queries, wasted, slots, restarts,
    geometry, signs, eps, eps_rows, lo, hi, count,
) -> None:  # fmt: skip
    """`fastadv.ops.square`'s reference, bit for bit, on tensors of the CPU."""
    if x.numel() == 0:
        return
    batch, width = queries.shape
    images = _Images(x.shape, not x_best.is_contiguous())
    new, best, clean = _flat(x_new), _flat(x_best), _flat(x)
    query, slot_state, table = queries.numpy(), slots.numpy(), geometry.numpy()
    first = restarts.numpy().astype(np.int64) * count
    going, slot, row, accepted, cursor = _accept(
        loss.numpy().reshape(batch, width), prediction.numpy().reshape(batch, width),
        labels.numpy(), best_loss.numpy(), query, wasted.numpy(), slot_state, count,
    )  # fmt: skip
    own = accepted >= 0
    slot, row, accepted = slot[own], row[own], accepted[own]
    if len(slot):
        windows = table[first[slot] + accepted]
        _copy_windows(images, windows, best, slot, new, slot * width + row)
    _restore(images, new, best, table, first, query, going, slot, row, accepted, count)
    dtype = np.float64 if x.dtype is torch.float64 else np.float32
    radius = np.full(batch, eps, dtype) if eps_rows is None else eps_rows.numpy().astype(dtype)
    query[going] = count
    _search(
        images, new, best, clean, table, signs.numpy(), first, query, going,
        cursor[going].astype(np.int64), radius, dtype(lo), dtype(hi), count,
    )  # fmt: skip
    upcoming = query[going, 0]
    slot_state[going, columns.STEP] = upcoming
    slot_state[going, columns.ACTIVE] = upcoming < count


def _restore(images, new, best, table, first, query, going, slot, row, accepted, count) -> None:
    """Rows of x_new equal x_best again: their own windows, and the accepted one in the others."""
    width = query.shape[1]
    which, k = np.nonzero((query[going] >= 0) & (query[going] < count))
    which = going[which]
    windows = table[first[which] + query[which, k]]
    _copy_windows(images, windows, new, which * width + k, best, which)
    if width == 1 or len(slot) == 0:
        return
    others = np.repeat(np.arange(len(slot)), width), np.tile(np.arange(width), len(slot))
    keep = others[1] != row[others[0]]
    which, k = others[0][keep], others[1][keep]
    windows = table[first[slot[which]] + accepted[which]]
    _copy_windows(images, windows, new, slot[which] * width + k, best, slot[which])


def _ahead(slots: int, elements: int, width: int) -> int:
    """How many candidates of each slot to test at once: what amortises the calls of numpy."""
    return min(_MOST_AHEAD, max(width, _ELEMENTS_AT_ONCE // (slots * (elements + _CANDIDATE))))


def _search(
    images, new, best, clean, table, signs, first, query, slot, cursor, radius, lo, hi, count
) -> None:  # fmt: skip
    """Write each slot's next proposals that change something, and which queries they are."""
    width = query.shape[1]
    found = np.zeros(len(slot), np.int64)
    while len(slot := slot[(unfinished := (found < width) & (cursor < count))]):
        found, cursor = found[unfinished], cursor[unfinished]
        window = table[first[slot[0]] + cursor[0], 2] ** 2 * images.shape[0]
        ahead = _ahead(len(slot), int(window), width)
        candidate = cursor[:, None] + np.arange(ahead)
        exists = (candidate < count).ravel()
        pair = np.repeat(slot, ahead)
        index = first[pair] + np.minimum(candidate, count - 1).ravel()
        changes = np.zeros(len(pair), bool)
        tested = []
        for side, rows in _by_side(table[index]):
            element, channel = images.elements(side, table[index[rows]])
            of = pair[rows]
            here = of * images.size + element
            at_best, eps = best[here], radius[of]
            stored = _propose(
                at_best.astype(radius.dtype, copy=False), clean[here].astype(eps.dtype, copy=False),
                signs[index[rows], channel[:, None]].astype(eps.dtype), eps, lo, hi,
            ).astype(best.dtype, copy=False)  # fmt: skip
            changes[rows] = (stored != at_best).any(0)
            tested.append((rows, element, stored))
        changes &= exists
        rank = found[:, None] + changes.reshape(-1, ahead).cumsum(1)
        kept = changes & (rank <= width).ravel()
        target = pair * width + rank.ravel() - 1
        for rows, element, stored in tested:
            keep = kept[rows]
            new[target[rows][keep] * images.size + element[:, keep]] = stored[:, keep]
        query.reshape(-1)[target[kept]] = candidate.ravel()[kept]
        found = np.minimum(rank[:, -1], width)
        cursor = cursor + ahead
