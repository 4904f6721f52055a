"""Instructions whose results PTX does not fix: moved by as much as the architecture may be off.

A result is a function of its input, as on a device, but no test can lean on its exact bits: what
agrees with these agrees with whatever the hardware does inside its documented error.
"""

import numpy as np

EX2 = 2  # ulp, of the correctly rounded result (PTX ISA 9.1)
RCP64 = 2.0**-20  # relative: the upper half of a double, a first guess for Newton's method


def ex2(value: np.ndarray) -> np.ndarray:
    """2^value in fp32, off by up to EX2 of its ulp.

    Exact at zeros and infinities, as PTX has it, and where the result rounds to zero: a device
    that made 2^-360 twice the least number would be within the letter of the bound alone.
    """
    nearest = np.exp2(value.astype(np.float64)).astype(np.float32)
    fixed = (value == 0) | (nearest == 0) | ~np.isfinite(nearest)
    ulps = np.where(fixed, 0, np.rint((EX2 + 0.5) * _noise(value))).astype(np.float32)
    return np.maximum(nearest + ulps * np.spacing(np.where(fixed, 1, nearest)), 0)


def rcp64(value: np.ndarray) -> np.ndarray:
    """1 / value from the upper 32 bits of a double, to its upper 32 bits; subnormals are zeros."""
    upper = _upper_half(value)
    upper = np.where(np.abs(upper) < 2.0**-1022, np.copysign(0.0, upper), upper)
    guess = _upper_half((1 / upper) * (1 + RCP64 * _noise(upper) / 2))
    exact = ~np.isfinite(upper) | (upper == 0)
    return np.where(exact, 1 / upper, guess)


def _upper_half(value):
    return (value.view(np.uint64) & np.uint64(0xFFFFFFFF00000000)).view(np.float64)


def _noise(value: np.ndarray) -> np.ndarray:
    """In (-1, 1), from the bits of the input (Knuth's multiplicative hash)."""
    bits = value.view(f"u{value.itemsize}").astype(np.uint64)
    mixed = bits * np.uint64(0x9E3779B97F4A7C15)
    return (mixed >> np.uint64(40)).astype(np.float64) / 2.0**23 - 1.0
