"""Shares of samples: their intervals, and how they are written."""

import math

_Z95 = 1.959963984540054  # the 97.5 % quantile of the normal distribution


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a proportion, within [0, 1].

    Wilson 1927, Probable inference, the law of succession, and statistical inference, JASA 22.
    """
    share, z2 = successes / n, _Z95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def percent(share: float) -> str:
    return f"{100 * share:.2f} %"
