"""What one lane computes: opcode -> types of sources and results, and a function of numbers.

An opcode or a modifier that stands here nowhere is an error: `operation_of` raises UnknownPtx.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from . import approximate
from .numbers import TYPES, Type, flush, fused
from .parser import UnknownPtx


class Operation(NamedTuple):
    """function: the sources' numbers -> the numbers of the results, a tuple where they are two."""

    sources: tuple[Type, ...]
    results: tuple[Type, ...]
    function: Callable


_RULES: dict[str, Callable[[str, tuple[str, ...], Type], Operation]] = {}


def operation_of(opcode: tuple[str, ...]) -> Operation:
    """The operation of ("add", "rn", "f32"); raises UnknownPtx."""
    name, *modifiers, kind = opcode
    if name not in _RULES or kind not in TYPES:
        raise UnknownPtx(".".join(opcode))
    return _RULES[name](name, tuple(modifiers), TYPES[kind])


def rule(*names: str):
    def add(function):
        _RULES.update(dict.fromkeys(names, function))
        return function

    return add


def demand(opcode: str, modifiers: tuple[str, ...], *allowed: tuple[str, ...]) -> None:
    """The modifiers must be one of `allowed`."""
    if modifiers not in allowed:
        raise UnknownPtx(f"{opcode} with {modifiers}; known: {allowed}")


_BINARY = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}


@rule("add", "sub", "mul", "div")
def _binary(name, modifiers, kind):
    if not kind.is_float:
        return _whole(name, modifiers, kind)
    # without .rn ptxas may fuse a product and a sum
    demand(name, modifiers, ("rn",), *([("rn", "ftz")] if kind.name == "f32" else []))
    if name == "div" and kind.bits < 32:
        raise UnknownPtx(f"div.{kind.name}")
    return Operation((kind, kind), (kind,), _flushing(_BINARY[name], modifiers))


def _flushing(function, modifiers):
    if "ftz" not in modifiers:
        return function
    return lambda *values: flush(function(*(flush(v) for v in values)))


def _whole(name, modifiers, kind):
    if name == "mul":
        return _product(name, modifiers, kind)
    demand(name, modifiers, ())
    return Operation((kind, kind), (kind,), _quotient if name == "div" else _BINARY[name])


def _quotient(a, b):
    """Towards zero; of a division by zero, which gives no fixed value, -1."""
    zero = b == 0
    safe = np.where(zero, b.dtype.type(1), b)
    down = a // safe
    up = (down * safe != a) & ((a < 0) != (safe < 0))
    return np.where(zero, np.array(-1).astype(b.dtype), down + up.astype(b.dtype))


@rule("rem")
def _remainder(name, modifiers, kind):
    demand(name, modifiers, ())
    return Operation((kind, kind), (kind,), lambda a, b: a - _quotient(a, b) * b)


def _wider(kind: Type) -> Type:
    return TYPES[f"{kind.name[0]}{2 * kind.bits}"]


def _product(name, modifiers, kind):
    if modifiers == ("lo",):
        return Operation((kind, kind), (kind,), np.multiply)
    demand(name, modifiers, ("lo",), ("wide",), ("hi",))
    if kind.bits > 32:
        demand(f"{name}.{kind.name}", modifiers, ("hi",))
        return Operation((kind, kind), (kind,), _upper_half)
    wide = _wider(kind)
    number = wide.decode(np.zeros(1, f"u{wide.bits // 8}")).dtype
    if modifiers == ("wide",):
        return Operation((kind, kind), (wide,), lambda a, b: a.astype(number) * b.astype(number))

    def high(a, b):
        return (a.astype(number) * b.astype(number) >> number.type(kind.bits)).astype(a.dtype)

    return Operation((kind, kind), (kind,), high)


def _upper_half(a, b):
    """The upper 64 bits of a product of 128, from products of halves, which 64 bits hold."""
    half, low = a.dtype.type(32), a.dtype.type(0xFFFFFFFF)
    a0, b0 = a & low, b & low
    a1, b1 = a >> half, b >> half  # with the sign, where there is one
    carry = (a0.astype(np.uint64) * b0.astype(np.uint64) >> np.uint64(32)).astype(a.dtype)
    middle = a1 * b0 + carry
    rest = a0 * b1 + (middle & low)
    return a1 * b1 + (middle >> half) + (rest >> half)


@rule("mad")
def _product_and_sum(name, modifiers, kind):
    demand(name, modifiers, ("lo",), ("wide",))
    product = _product(name, modifiers, kind)
    (result,) = product.results
    return Operation(
        (*product.sources, result), (result,), lambda a, b, c: product.function(a, b) + c
    )


@rule("fma")
def _fma(name, modifiers, kind):
    demand(name, modifiers, ("rn",), *([("rn", "ftz")] if kind.name == "f32" else []))
    if kind.name not in ("f32", "f64"):
        raise UnknownPtx(f"fma.{kind.name}")
    return Operation((kind, kind, kind), (kind,), _flushing(fused, modifiers))


@rule("min", "max")
def _extreme(name, modifiers, kind):
    if not kind.is_float:
        demand(name, modifiers, ())
        return Operation((kind, kind), (kind,), np.minimum if name == "min" else np.maximum)
    demand(name, modifiers, (), ("NaN",))
    numbers_win, nan_wins = (np.fmin, np.minimum) if name == "min" else (np.fmax, np.maximum)
    choose = nan_wins if modifiers else numbers_win

    def function(a, b):
        result = choose(a, b)
        zeros = (a == 0) & (b == 0)  # -0 is less than +0
        if not zeros.any():
            return result
        either = np.signbit(a) | np.signbit(b), np.signbit(a) & np.signbit(b)
        negative = either[0] if name == "min" else either[1]
        return np.where(zeros, np.where(negative, a.dtype.type(-0.0), a.dtype.type(0.0)), result)

    return Operation((kind, kind), (kind,), function)


@rule("abs", "neg", "sqrt")
def _unary(name, modifiers, kind):
    if name == "sqrt":
        demand(name, modifiers, ("rn",))
        return Operation((kind,), (kind,), np.sqrt)
    demand(name, modifiers, (), *([("ftz",)] if kind.name == "f32" else []))
    function = np.abs if name == "abs" else np.negative
    return Operation((kind,), (kind,), _flushing(function, modifiers))


@rule("ex2")
def _ex2(name, modifiers, kind):
    demand(
        f"{name}.{kind.name}", (*modifiers, kind.name), ("approx", "f32"), ("approx", "ftz", "f32")
    )
    return Operation((kind,), (kind,), _flushing(approximate.ex2, modifiers))


@rule("rcp")
def _rcp(name, modifiers, kind):
    demand(f"{name}.{kind.name}", (*modifiers, kind.name), ("approx", "ftz", "f64"))
    return Operation((kind,), (kind,), approximate.rcp64)


_LOGIC = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}


@rule("and", "or", "xor")
def _logic(name, modifiers, kind):
    demand(name, modifiers, ())
    return Operation((kind, kind), (kind,), _LOGIC[name])


@rule("not")
def _not(name, modifiers, kind):
    demand(name, modifiers, ())
    return Operation((kind,), (kind,), np.invert)


@rule("mov")
def _move(name, modifiers, kind):
    demand(name, modifiers, ())
    bits = _as_bits(kind)
    return Operation((bits,), (bits,), lambda a: a)


@rule("selp")
def _select(name, modifiers, kind):
    demand(name, modifiers, ())
    bits = _as_bits(kind)
    return Operation((bits, bits, TYPES["pred"]), (bits,), lambda a, b, p: np.where(p, a, b))


def _as_bits(kind: Type) -> Type:
    """What is moved keeps its bits, a NaN's too."""
    return kind if kind.name == "pred" else TYPES[f"b{kind.bits}"]
