"""Projections onto a chunk of hyperplanes in numpy: without a sort, but half a one in L1.

Both points of a row share its weights, and rows whose search has ended leave it. Sums are einsum's
or pairwise, in an order that depends on the row's length alone (tested): a row gives the same bits
in any batch.
"""

import numpy as np

_LEAST_WEIGHT = 1e-8  # the authors': in L2 and L1, coordinates up to it do not move
_TOP = 1e30  # the largest level: no bound is farther; finite, because 0 * inf is not 0
_SIGN_SHIFT = {4: (np.int32, 31), 8: (np.int64, 63)}  # integer twin, the shift that spreads a sign


def row_lengths(rows: np.ndarray, norm: str) -> np.ndarray:
    """The norm of each row of (B, D)."""
    if norm == "linf":
        return np.abs(rows).max(1, initial=0.0)
    if norm == "l2":
        return np.sqrt(np.einsum("ij,ij->i", rows, rows))
    return np.einsum("ij->i", np.abs(rows))


class Hyperplane:
    """The normals of a chunk of hyperplanes, and what the projections of two points share."""

    def __init__(self, w: np.ndarray, norm: str) -> None:
        self.norm = norm
        self.integer, self.shift = _SIGN_SHIFT[w.itemsize]
        weight = np.abs(w)
        total = np.einsum("ij->i", weight)
        if not np.isfinite(total).all():  # rarely: NaN and infinity count as 0
            w = np.where(np.isfinite(w), w, w.dtype.type(0))
            weight = np.abs(w)
            total = np.einsum("ij->i", weight)
        self.w, self.weight = w, weight
        least = 0.0 if norm == "linf" else _LEAST_WEIGHT
        self.still = weight <= least if weight.min(initial=1.0) <= least else None
        if norm != "linf" and self.still is not None:
            weight[self.still] = 0.0
        self.gain = weight if norm == "linf" else weight * weight
        self.total = total if norm == "linf" else np.einsum("ij->i", self.gain)
        self.order = _descending(weight) if norm == "l1" else None

    def projection(
        self,
        points: np.ndarray,
        offset: np.ndarray,
        lo: float,
        hi: float,
        out: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """(d, ||d||) with w . d = -offset as far as the box allows."""
        room = self._signed_room(points, offset < 0, lo, hi, out)
        need = np.abs(offset)
        if self.order is not None:
            d = self._filled(room, need, self.order)
            return d, row_lengths(d, "l1")
        magnitude = np.abs(room)
        level, steep = self._levels(magnitude, need)
        if self.norm == "l2":
            reach = np.multiply(self.weight, level[:, None], out=magnitude)
            d = np.clip(room, -reach, reach, out=room)
            return d, row_lengths(d, "l2")
        length = level
        full = steep <= 0
        if full.any():
            length = np.where(full, magnitude.max(1, initial=0.0), level)
        return np.clip(room, -level[:, None], level[:, None], out=room), length

    def _signed_room(
        self, points: np.ndarray, flip: np.ndarray, lo: float, hi: float, out: np.ndarray | None
    ) -> np.ndarray:
        """bound - points, for the bound towards which w . points nears its value; 0 if w is."""
        low, high = (int(points.dtype.type(bound).view(self.integer)) for bound in (lo, hi))
        bound = np.right_shift(self.w.view(self.integer), self.shift)  # all ones: w < 0, upwards
        if flip.any():
            np.bitwise_xor(bound, -flip[:, None].astype(self.integer), out=bound)
        np.bitwise_and(bound, self.integer(low ^ high), out=bound)
        if low:
            np.bitwise_xor(bound, self.integer(low), out=bound)
        room = np.clip(points, lo, hi, out=out)  # a point outside counts as at the bound
        np.subtract(bound.view(points.dtype), room, out=room)
        if self.still is not None:
            np.copyto(room, 0.0, where=self.still)
        return room

    def _levels(self, room: np.ndarray, need: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(level, slope) of each row: sum(weight * min(reach, room)) = need, where reach is level
        (L-infinity) or level * weight (L2); the largest level and 0 where the box ends before.

        The sum is concave and piecewise linear in the level: Newton's steps from the left only
        rise, and end when no coordinate more reaches its bound.
        """
        every, full_need = room, need
        weight, gain = self.weight, self.gain
        level = np.where(self.total > 0, np.minimum(need / self.total, _TOP), _TOP)
        levels, slopes, index = level, self.total.copy(), np.arange(len(level))
        slope = slopes
        spare = np.empty_like(room)
        reached = np.empty_like(room) if self.norm == "l2" else None
        while True:
            below = spare[: len(level)]
            reach = level[:, None]
            if reached is not None:
                reach = np.multiply(weight, reach, out=reached[: len(level)])
            np.subtract(reach, room, out=below)
            bits = below.view(self.integer)  # a negative sign, spread, keeps the gains below
            np.right_shift(bits, self.shift, out=bits)
            np.bitwise_and(bits, gain.view(self.integer), out=bits)
            steep = np.einsum("ij->i", below)
            searching = steep != slope
            slopes[index] = slope = steep
            count = np.count_nonzero(searching)
            if count == 0:
                break
            np.minimum(reach, room, out=below)
            short = need - np.einsum("ij,ij->i", weight, below)
            risen = np.where(steep > 0, np.minimum(level + short / steep, _TOP), _TOP)
            level = np.where(searching & (risen > level), risen, level)
            levels[index] = level
            if 4 * count <= 3 * len(level):
                index, level, slope, need = (v[searching] for v in (index, level, slope, need))
                weight, room = weight[searching], room[searching]
                gain = weight if self.norm == "linf" else gain[searching]
        # einsum adds up as many runs as a vector has lanes; one more step with pairwise sums has
        # half its error or less
        reach = levels[:, None]
        if reached is not None:
            reach = np.multiply(self.weight, reach, out=reached)
        np.minimum(reach, every, out=spare)
        np.multiply(spare, self.weight, out=spare)
        short = full_need - np.add.reduce(spare, axis=1)
        return np.where(slopes > 0, levels + short / slopes, levels), slopes

    def _filled(self, room: np.ndarray, need: np.ndarray, order: np.ndarray) -> np.ndarray:
        """Coordinates filled by descending weight until they add up to `need`."""
        weight = np.take_along_axis(self.weight, order, 1)
        room = np.take_along_axis(room, order, 1)
        filled = np.cumsum(weight * np.abs(room), axis=1, dtype=np.float64)
        whole = np.count_nonzero(filled < need[:, None], axis=1)
        room[np.arange(room.shape[1]) > whole[:, None]] = 0.0
        rows = np.flatnonzero(whole < room.shape[1])
        last = whole[rows]
        before = np.where(last > 0, filled[rows, last - 1], 0.0)
        divisor = weight[rows, last]
        partial = (need[rows] - before) / np.where(divisor > 0, divisor, 1.0)
        partial = np.minimum(partial, np.abs(room[rows, last]))
        room[rows, last] = np.copysign(partial, room[rows, last])
        d = np.empty_like(room)
        np.put_along_axis(d, order, room, 1)
        return d


def _descending(weight: np.ndarray) -> np.ndarray:
    """Columns of each row by descending weight, ties by position."""
    if weight.itemsize == 8:
        return np.argsort(-weight, axis=1, kind="stable")
    # one word of complemented weight and column: sorting integers in place is what numpy vectorises
    key = (np.uint32(0xFFFFFFFF) - weight.view(np.uint32)).astype(np.uint64) << np.uint64(32)
    key |= np.arange(weight.shape[1], dtype=np.uint64)
    key.sort(axis=1)
    return (key & np.uint64(0xFFFFFFFF)).astype(np.intp)
