"""PTX's types as numpy arrays: registers' bits as numbers, and numbers rounded to bits."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

# what registers hold; predicates are bool
BITS = {1: np.bool_, 8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
_NUMPY = {
    "b": np.dtype("u1"),
    "u": np.dtype("u1"),
    "s": np.dtype("i1"),
    "f": np.dtype("f2"),
}
_CANONICAL_NAN = {np.dtype("f2"): 0x7FFF, np.dtype("f4"): 0x7FFFFFFF}  # PTX ISA: of f16 and f32


@dataclass(frozen=True)
class Type:
    """`decode`: register bits -> numbers; `encode`: numbers -> bits, of `bits` bits."""

    name: str
    bits: int
    decode: Callable[[np.ndarray], np.ndarray]
    encode: Callable[[np.ndarray], np.ndarray]

    @property
    def is_float(self) -> bool:
        return self.name.startswith(("f", "bf"))

    @property
    def is_signed(self) -> bool:
        return self.name[0] == "s"


def _plain(name: str) -> Type:
    bits = int(name[1:])
    kind = name[0] if name[0] != "b" else "u"
    number = np.dtype(f"{kind.replace('s', 'i')}{bits // 8}")
    store = BITS[bits]

    def decode(raw):
        return raw.astype(store, copy=False).view(number)

    def encode(value):
        value = np.asarray(value, number)
        if number in _CANONICAL_NAN:
            nan = value != value
            if nan.any():
                raw = value.view(store).copy()
                raw[nan] = _CANONICAL_NAN[number]
                return raw
        return value.view(store)

    return Type(name, bits, decode, encode)


def _bf16_decode(raw):
    return (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _bf16_encode(value):
    """To nearest, ties to even; from fp32, in which sums and products of two bf16 are exact enough
    that rounding twice is rounding once."""
    value = np.asarray(value, np.float32)
    wide = value.view(np.uint32).astype(np.uint64)
    rounded = (wide + np.uint64(0x7FFF) + ((wide >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)
    return np.where(np.isnan(value), 0x7FFF, rounded).astype(np.uint16)


def _pair(half: Type) -> Type:
    """Two halves in 32 bits, as a last axis of two: the lower half first."""

    def decode(raw):
        raw = np.ascontiguousarray(raw, np.uint32)
        return half.decode(raw.view(np.uint16).reshape(*raw.shape, 2))

    def encode(value):
        raw = np.ascontiguousarray(half.encode(value))
        return raw.view(np.uint32).reshape(raw.shape[:-1])

    return Type(half.name + "x2", 32, decode, encode)


_KINDS = [f"{kind}{bits}" for kind in "bus" for bits in (8, 16, 32, 64)]
TYPES = {name: _plain(name) for name in [*_KINDS, "f16", "f32", "f64"]}
TYPES["bf16"] = Type("bf16", 16, _bf16_decode, _bf16_encode)
TYPES["pred"] = Type("pred", 1, lambda raw: raw, lambda value: np.asarray(value, np.bool_))
TYPES |= {f"{name}x2": _pair(TYPES[name]) for name in ("f16", "bf16", "s16", "u16")}


def immediate(text: str, bits: int) -> np.ndarray:
    """The bits of a constant operand: 0f3F800000, 0d..., 0x7770U, -1."""
    if text[:2] in ("0f", "0F", "0d", "0D"):
        value = int(text[2:], 16)
    else:
        value = int(text.rstrip("U"), 0)
    store = BITS[bits]
    return np.array(bool(value) if bits == 1 else value & ((1 << bits) - 1), store)


def flush(value: np.ndarray) -> np.ndarray:
    """.ftz: subnormal fp32 numbers become zeros of their sign."""
    return np.where(np.abs(value) < np.float32(2.0**-126), np.copysign(np.float32(0), value), value)


def fused(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a * b + c rounded once, in fp32 or fp64.

    The exact sum is first rounded to odd in fp64 (Boldo and Melquiond 2008), so that the second
    rounding is the only one that counts.
    """
    if a.dtype == np.float32:
        product, rest = a.astype(np.float64) * b.astype(np.float64), 0.0  # exact
        return _sum_to_odd(product, c.astype(np.float64)).astype(np.float32)
    product, rest = _exact_product(a, b)
    low, lower = _exact_sum(c, rest)
    high, middle = _exact_sum(product, low)
    exact = high + _sum_to_odd(lower, middle)
    return np.where(np.isfinite(exact), exact, a * b + c)


def _exact_sum(a, b):
    total = a + b
    back = total - a
    return total, (a - (total - back)) + (b - back)


def _exact_product(a, b):
    def halves(x):
        scaled = 134217729.0 * x  # 2^27 + 1
        high = scaled - (scaled - x)
        return high, x - high

    product = a * b
    (ah, al), (bh, bl) = halves(a), halves(b)
    return product, ((ah * bh - product) + ah * bl + al * bh) + al * bl


def _sum_to_odd(a, b):
    total, rest = _exact_sum(a, b)
    even = (np.asarray(total).view(np.int64) & 1) == 0
    inexact = even & (rest != 0) & np.isfinite(total) & np.isfinite(rest)
    return np.where(inexact, np.nextafter(total, np.where(rest > 0, np.inf, -np.inf)), total)


def whole_number(value: np.ndarray, target: Type) -> np.ndarray:
    """A rounded float as an integer: clipped to the range, NaN is 0."""
    number = target.decode(np.zeros((), BITS[target.bits])).dtype
    limits = np.iinfo(number)
    wide = np.where(np.isnan(value), 0.0, value.astype(np.float64))
    inside = (wide > limits.min) & (wide < limits.max)
    result = np.where(inside, wide, 0.0).astype(number)
    result = np.where(wide >= limits.max, number.type(limits.max), result)
    return np.where(wide <= limits.min, number.type(limits.min), result)
