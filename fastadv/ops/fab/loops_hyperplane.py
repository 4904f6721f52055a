"""Projections of one row onto a hyperplane inside a box, in loops; `hyperplane` defines them.

In L-infinity and L2 every sum halves its row as `reduction.tree_sum` does: the bits of the
reference. In L1 sums go through `LANES` partial ones in float64, in an order that depends on the
row's length alone. There are few functions, as numba takes a fifth of a second for each.
"""

import math

from fastadv.ops.loops import inner
from fastadv.ops.loops_taken import LANES, last_taken

LINF, L2, L1, SIGNED = 0, 1, 2, 3
KINDS = {"linf": LINF, "l2": L2, "l1": L1}
_LEAST_WEIGHT = 1e-8  # the authors': in L2 and L1, coordinates up to it do not move
_TOP = 1e30  # the largest level: no bound is farther; finite, because 0 * inf is not 0
_TURNS = 40  # as the reference's


@inner
def length(values, size, kind, tree):
    """The norm of a row, or its SIGNED sum; tree: max(size, LANES) numbers to work in."""
    if kind == LINF:
        for k in range(LANES):
            tree[k] = 0
        for at in range(0, size, LANES):
            for k in range(min(LANES, size - at)):
                value = abs(values[at + k])
                tree[k] = value if (value > tree[k]) | (value != value) else tree[k]
        found = tree[0]
        for k in range(1, LANES):
            found = tree[k] if (tree[k] > found) | (tree[k] != tree[k]) else found
        return found
    for j in range(size):
        value = values[j]
        if kind == L2:
            value = value * value
        elif kind == L1:
            value = abs(value)
        tree[j] = value
    while size > 1:
        half = size // 2
        for k in range(half):
            tree[k] += tree[half + k]
        if size % 2 == 1:
            tree[0] += tree[size - 1]
        size = half
    return type(tree[0])(math.sqrt(tree[0] * 1.0)) if kind == L2 else tree[0]


@inner
def weigh(grad, points, clean, at, size, counts, kind, normal, weight, works):
    """normal: grad where it is finite and `counts`, else 0; weight: its magnitude, 0 where it does
    not move; works: normal * (points - clean)."""
    zero = type(normal[0])(0)
    least = type(zero)(0 if kind == LINF else _LEAST_WEIGHT)
    for j in range(size):
        w = grad[at + j]
        w = w if (w - w == 0) & counts else zero
        normal[j] = w
        weight[j] = abs(w) if abs(w) > least else zero
        works[j] = w * (points[at + j] - clean[at + j])


@inner
def _measure(normal, weight, points, at, size, falls, lo, hi, room):
    """room: signed, to the bound towards which the point moves; 0 where it stays."""
    zero = type(lo)(0)
    for j in range(size):
        w, point = normal[j], points[at + j]
        upwards = w < 0 if falls else w > 0
        point = lo if point < lo else point
        point = hi if point > hi else point
        signed = (hi if upwards else lo) - point
        room[j] = signed if weight[j] > 0 else zero


@inner
def _part(weight, room, j, level, kind):
    """What a coordinate adds to (the slope, the work done) at a level: it is open, or at its
    bound."""
    w, far = weight[j], abs(room[j])
    zero = w - w
    is_open = far > level * w if kind == L2 else far > level
    gain = w * w if kind == L2 else w
    return gain if is_open else zero, zero if is_open else w * far


@inner
def _level(weight, room, size, need, kind, slopes, works):
    """sum(weight * min(reach, |room|)) = need, where reach is level, in L2 level * weight; by
    Newton's steps from the left, which only rise. The largest level where the box ends before."""
    top, level = type(need)(_TOP), type(need)(0)
    for _ in range(_TURNS):
        half = size // 2
        for k in range(half):
            one, one_work = _part(weight, room, k, level, kind)
            other, other_work = _part(weight, room, half + k, level, kind)
            slopes[k] = one + other
            works[k] = one_work + other_work
        if size % 2 == 1:
            last, last_work = _part(weight, room, size - 1, level, kind)
            slopes[0] = slopes[0] + last if half > 0 else last
            works[0] = works[0] + last_work if half > 0 else last_work
        left = half
        while left > 1:
            half = left // 2
            for k in range(half):
                slopes[k] += slopes[half + k]
                works[k] += works[half + k]
            if left % 2 == 1:
                slopes[0] += slopes[left - 1]
                works[0] += works[left - 1]
            left = half
        risen = (need - works[0]) / slopes[0] if slopes[0] > 0 else top
        risen = top if risen > top else risen
        if not risen > level:  # nor would it later
            break
        level = risen
    return level


@inner
def _fill(weight, size, need, room, lanes, gained, sums):
    """Coordinates filled by descending weight, ties by position, until they add up to `need`."""
    zero = type(need)(0)
    for j in range(size):
        gained[j] = weight[j] * abs(room[j]) if weight[j] > 0 else zero
    for j in range(size, size + LANES):  # what is read of a row is a multiple of LANES
        weight[j] = gained[j] = 0
    last, above, most = last_taken(weight, gained, size, need, lanes, sums)
    if not most >= need:
        return
    rest = need - above
    for j in range(size):
        if weight[j] == last:
            part, far = type(need)(rest / last if rest > 0 else 0.0), abs(room[j])
            part = part if part < far else far
            rest -= gained[j]
            room[j] = -part if room[j] < 0 else part
        elif weight[j] < last:
            room[j] = zero


@inner
def project(normal, weight, points, at, size, offset, kind, lo, hi, room, slopes, works, sums):
    """Into room: d with normal . d = -offset as far as the box allows.

    room, slopes, works: rows to work in, padded by `LANES`; sums: LANES numbers of float64.
    """
    need = abs(offset)
    _measure(normal, weight, points, at, size, not offset < 0, lo, hi, room)
    if kind == L1:
        _fill(weight, size, need, room, slopes, works, sums)
        return
    level = _level(weight, room, size, need, kind, slopes, works)
    for j in range(size):
        signed = room[j]
        reach, far = level * weight[j] if kind == L2 else level, abs(signed)
        far = far if (far < reach) | (far != far) else reach
        room[j] = -far if signed < 0 else far
