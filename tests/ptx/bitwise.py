"""Shifts, bit fields, bytes, comparisons and conversions: more rules of `arithmetic`."""

import numpy as np

from .arithmetic import Operation, demand, rule
from .numbers import TYPES, flush, whole_number
from .parser import UnknownPtx

_U32 = TYPES["u32"]


@rule("shl", "shr")
def _shift(name, modifiers, kind):
    demand(name, modifiers, ())

    def function(a, amount):
        most = kind.bits - 1
        by = np.minimum(amount, most).astype(a.dtype)
        shifted = a << by if name == "shl" else a >> by
        if kind.is_signed and name == "shr":
            return shifted  # the sign, however far
        return np.where(amount > most, a.dtype.type(0), shifted)

    return Operation((kind, _U32), (kind,), function)


@rule("popc")
def _count_ones(name, modifiers, kind):
    demand(name, modifiers, ())

    def function(a):
        octets = np.ascontiguousarray(a).view(np.uint8).reshape(*a.shape, -1)
        return np.unpackbits(octets, axis=-1).sum(-1, dtype=np.uint32)

    return Operation((kind,), (_U32,), function)


@rule("bfe")
def _bit_field(name, modifiers, kind):
    demand(f"{name}.{kind.name}", (*modifiers, kind.name), ("u32",), ("s32",))

    def function(a, position, length):
        raw = a.view(np.uint32).astype(np.int64)
        first, count = (position & 255).astype(np.int64), (length & 255).astype(np.int64)
        inside = np.clip(np.minimum(count, 32 - first), 0, 32)
        field = (raw >> np.minimum(first, 32)) & ((np.int64(1) << inside) - 1)
        if kind.is_signed:
            top = np.clip(first + count - 1, 0, 31)
            negative = ((raw >> top) & 1).astype(bool) & (count > 0)
            field = np.where(negative, field | ~((np.int64(1) << inside) - 1), field)
        return field.astype(a.dtype)

    return Operation((kind, _U32, _U32), (kind,), function)


@rule("prmt")
def _permute_bytes(name, modifiers, kind):
    demand(f"{name}.{kind.name}", (*modifiers, kind.name), ("b32",))

    def function(a, b, selector):
        both = a.astype(np.uint64) | (b.astype(np.uint64) << np.uint64(32))
        result = np.zeros(np.broadcast_shapes(a.shape, b.shape, selector.shape), np.uint32)
        for i in range(4):
            choice = (selector >> np.uint32(4 * i)) & np.uint32(15)
            byte = (both >> (np.uint64(8) * (choice & np.uint32(7)))) & np.uint64(255)
            sign = np.where(byte > 127, np.uint64(255), np.uint64(0))
            byte = np.where(choice > 7, sign, byte)
            result |= byte.astype(np.uint32) << np.uint32(8 * i)
        return result

    return Operation((kind, kind, _U32), (kind,), function)


_ORDERED = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}


@rule("setp")
def _compare(name, modifiers, kind):
    if len(modifiers) != 1:
        raise UnknownPtx(f"setp with {modifiers}")
    test = _comparison(modifiers[0], kind)
    predicate = TYPES["pred"]
    if kind.name.endswith("x2"):

        def halves(a, b):
            both = test(a, b)
            return both[..., 0], both[..., 1]

        return Operation((kind, kind), (predicate, predicate), halves)
    return Operation((kind, kind), (predicate,), test)


def _comparison(name, kind):
    """Of floats: false where one is NaN, true where the name ends on u; num, nan: which it is."""
    if not kind.is_float:
        if name not in _ORDERED:
            raise UnknownPtx(f"setp.{name}.{kind.name}")
        return _ORDERED[name]
    if name == "num":
        return lambda a, b: (a == a) & (b == b)
    if name == "nan":
        return lambda a, b: (a != a) | (b != b)
    if name == "ne":
        return lambda a, b: (a != b) & (a == a) & (b == b)
    if name in _ORDERED:
        return _ORDERED[name]
    if name.removesuffix("u") in _ORDERED and name.endswith("u"):
        ordered = _ORDERED[name.removesuffix("u")]
        return lambda a, b: ordered(a, b) | (a != a) | (b != b)
    raise UnknownPtx(f"setp.{name}.{kind.name}")


_ROUNDINGS = {"rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil, "rni": np.rint}


@rule("cvt")
def _convert(name, modifiers, kind):
    *how, to = modifiers
    target, ftz, how = TYPES[to], "ftz" in how, tuple(m for m in how if m != "ftz")
    before = flush if ftz and kind.name == "f32" else (lambda v: v)
    if ftz and "f32" not in (to, kind.name):
        raise UnknownPtx(f"cvt.ftz.{to}.{kind.name}")
    if to.endswith("x2"):
        demand(f"cvt.{to}.{kind.name}", (*how, kind.name), ("rn", "f32"))
        # the first source goes to the upper half
        return Operation(
            (kind, kind),
            (target,),
            lambda a, b: np.stack(np.broadcast_arrays(before(b), before(a)), -1),
        )
    if kind.is_float and not target.is_float:
        rounding = _one_of(_ROUNDINGS, how, to, kind)
        return Operation((kind,), (target,), lambda a: whole_number(rounding(before(a)), target))
    if kind.is_float and target.is_float and kind.bits == target.bits and how[:1] != ("rn",):
        rounding = _one_of(_ROUNDINGS, how, to, kind)
        return Operation((kind,), (target,), lambda a: before(rounding(before(a))))
    exact = not target.is_float or (kind.is_float and target.bits > kind.bits)
    demand(f"cvt.{to}.{kind.name}", how, () if exact else ("rn",))
    if to == "bf16" and kind.name != "f32":
        raise UnknownPtx(f"cvt.bf16.{kind.name}: it would be rounded twice")
    number = (
        np.float32 if to == "bf16" else target.decode(np.zeros(1, f"u{target.bits // 8}")).dtype
    )
    after = flush if ftz and to == "f32" else (lambda v: v)
    return Operation((kind,), (target,), lambda a: after(before(a).astype(number)))


def _one_of(table, how, to, kind):
    if len(how) != 1 or how[0] not in table:
        raise UnknownPtx(f"cvt.{to}.{kind.name} with {how}")
    return table[how[0]]
