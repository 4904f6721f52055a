"""The value at which a row's gains, taken from the largest value down, reach what is needed."""

import math

from fastadv.ops.loops import inner

LANES = 64  # partial results, which a processor makes at once without fast-math


@inner
def _bracket(values, gained, size, least, with_least, lanes, sums):
    """(what values above `least`, or equal, gain; the smallest of those; the largest other)."""
    zero, infinite = type(least)(0), type(least)(math.inf)
    for k in range(LANES):
        lanes[k], lanes[LANES + k], sums[k] = infinite, zero, 0
    for at in range(0, size, LANES):
        for k in range(LANES):
            w = values[at + k]
            above = (w > least) | ((w == least) & with_least)
            sums[k] += gained[at + k] * 1.0 if above else 0.0
            over, under = w if above else infinite, zero if above else w
            lanes[k] = over if over < lanes[k] else lanes[k]
            lanes[LANES + k] = under if under > lanes[LANES + k] else lanes[LANES + k]
    width = LANES // 2
    while width > 0:
        for k in range(width):
            sums[k] += sums[k + width]
            over, under = lanes[k + width], lanes[LANES + k + width]
            lanes[k] = over if over < lanes[k] else lanes[k]
            lanes[LANES + k] = under if under > lanes[LANES + k] else lanes[LANES + k]
        width //= 2
    return sums[0], lanes[0], lanes[LANES]


@inner
def last_taken(values, gained, size, need, lanes, sums):
    """(v, the gains above v, all gains): those of values of at least v reach `need`, those above v
    do not; v is the smallest positive value where all together do not.

    values, gained: rows without negative numbers, padded by `LANES` zeros; lanes: 2 * LANES of
    their dtype; sums: LANES of float64. By bisection between values that are there, so without a
    sort; infinity where there is no positive value.
    """
    zero, infinite = type(values[0])(0), type(values[0])(math.inf)
    most, low, _ = _bracket(values, gained, size, zero, False, lanes, sums)
    if most >= need:
        _, _, high = _bracket(values, gained, size, infinite, False, lanes, sums)
        while low < high:
            middle = type(low)(math.sqrt(low) * math.sqrt(high))
            if not low < middle or middle > high:
                middle = high
            enough, over, under = _bracket(values, gained, size, middle, True, lanes, sums)
            if enough >= need:
                low = over
            else:
                high = under
    above, _, _ = _bracket(values, gained, size, low, False, lanes, sums)
    return low, above, most
