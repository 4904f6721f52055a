"""Instructions of one lane against answers that numpy, Python's integers or the PTX ISA give."""

import math

import numpy as np
import pytest

from ptx.by_hand import applied, computed, run
from ptx.parser import UnknownPtx

F32, F64, U16, U32, U64, I32 = np.float32, np.float64, np.uint16, np.uint32, np.uint64, np.int32
RNG = np.random.default_rng(0)
NAN = math.nan


def floats(dtype=F32):
    return RNG.normal(size=30).astype(dtype) * dtype(10.0) ** RNG.integers(-9, 9, 30).astype(dtype)


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize(
    ("name", "exact"),
    [("add.rn", np.add), ("sub.rn", np.subtract), ("mul.rn", np.multiply), ("div.rn", np.divide)],
)
def test_sums_and_products_round_to_nearest(name, exact, dtype):
    a, b = floats(dtype), floats(dtype)
    kind = "f32" if dtype is F32 else "f64"
    np.testing.assert_array_equal(applied(f"{name}.{kind}", a, b, into=dtype), exact(a, b))


def test_the_nan_of_a_computation_is_the_canonical_one():
    a = np.array([0xFFC12345, 0x7F800001, 0x7F800000], U32)
    got = applied("add.rn.f32", a, np.array([0, 0, 0xFF800000], U32), into=U32)
    assert got.tolist() == [0x7FFFFFFF] * 3


def test_what_is_moved_or_selected_keeps_the_bits_of_a_nan():
    bits = np.array([0xFFC12345, 0x7F800001], U32)
    assert computed("mov.b32 {0}, {1}", bits, into=U32).tolist() == bits.tolist()
    select = "setp.eq.b32 %p1, {1}, {1}; selp.f32 {0}, {1}, 0f00000000, %p1"
    assert computed(select, bits, into=U32).tolist() == bits.tolist()


def test_ftz_flushes_what_goes_in_and_what_comes_out():
    tiny = np.array([1e-40, -1e-40, 1e-30, 3e-20], F32)
    half = np.array([1, 1, 1e-10, 1e-20], F32)
    assert applied("mul.rn.f32", tiny, half, into=F32)[0] != 0
    got = applied("mul.rn.ftz.f32", tiny, half, into=F32)
    assert got.tolist() == [0.0, 0.0, 0.0, 0.0] and np.signbit(got).tolist() == [0, 1, 0, 0]


def test_fma_rounds_once_in_fp32():
    a, b, c = (RNG.integers(0, 1 << 24, 30).astype(F32) for _ in range(3))
    c = -(a * b) + c  # what the product's rounding dropped is all that is left, and more
    exact = [int(x) * int(y) + int(z) for x, y, z in zip(a, b, c, strict=True)]
    expected = np.array([F64(e) for e in exact]).astype(F32)  # below 2^53: exact in fp64
    got = applied("fma.rn.f32", a, b, c, into=F32)
    np.testing.assert_array_equal(got, expected)
    assert (got != a * b + c).any()


def test_fma_rounds_once_in_fp64():
    a, b = (RNG.integers(1 << 52, 1 << 53, 30).astype(F64) for _ in range(2))
    c = -(a * b)
    exact = [int(x) * int(y) + int(z) for x, y, z in zip(a, b, c, strict=True)]
    np.testing.assert_array_equal(applied("fma.rn.f64", a, b, c, into=F64), np.array(exact, F64))


def test_fma_is_not_fooled_by_rounding_to_odd():
    one = F32(1)
    # 1 + 2^-24 is a tie that goes to even, and the least more than a tie goes up
    a = np.array([2.0**-12, 2.0**-12, 1.0], F32)
    b = np.array([2.0**-12, 2.0**-12 * (1 + 2.0**-23), 0.0], F32)
    got = applied("fma.rn.f32", a, b, np.array([1, 1, 1], F32), into=F32)
    assert got.tolist() == [one, np.nextafter(one, F32(2)), one]


def test_min_and_max_prefer_numbers_and_order_zeros():
    a = np.array([NAN, 1, 0.0, -0.0, NAN, 2], F32)
    b = np.array([3, NAN, -0.0, 0.0, NAN, 1], F32)
    least, most = applied("min.f32", a, b, into=F32), applied("max.f32", a, b, into=F32)
    np.testing.assert_array_equal(least, np.array([3, 1, -0.0, -0.0, NAN, 1], F32))
    assert np.signbit(least[2:4]).all() and not np.signbit(most[2:4]).any()
    np.testing.assert_array_equal(most, np.array([3, 1, 0, 0, NAN, 2], F32))
    propagated = applied("max.NaN.f32", a, b, into=F32)
    np.testing.assert_array_equal(propagated, np.array([NAN, NAN, 0, 0, NAN, 2], F32))


def test_roots_absolutes_and_signs():
    a = np.array([2, 0.0, -0.0, 1e-40, -1], F32)
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(applied("sqrt.rn.f32", a, into=F32), np.sqrt(a))
    assert applied("abs.f32", a, into=F32).tolist() == np.abs(a).tolist()
    assert np.signbit(applied("neg.f64", np.array([0.0, 1.0, -2.0]), into=F64)).tolist() == [
        1,
        1,
        0,
    ]


def test_exponentials_are_off_and_never_by_more_than_documented():
    a = np.linspace(-20, 20, 32, dtype=F32)
    got = applied("ex2.approx.f32", a, into=F32)
    nearest = np.exp2(a.astype(F64)).astype(F32)
    ulps = np.abs(got - nearest) / np.spacing(nearest)
    assert (ulps >= 1).sum() > 16 and ulps.max() == 2.0
    np.testing.assert_array_equal(got, applied("ex2.approx.f32", a, into=F32))


def test_exponentials_that_the_architecture_fixes():
    a = np.array([-math.inf, math.inf, NAN, 0.0, -0.0], F32)
    expected = np.array([0, math.inf, NAN, 1, 1], F32)
    np.testing.assert_array_equal(applied("ex2.approx.f32", a, into=F32), expected)
    tiny = np.array([1e-40, -1e-40], F32)
    assert applied("ex2.approx.ftz.f32", tiny, into=F32).tolist() == [1.0, 1.0]


def test_exponentials_of_very_small_results_are_no_less_than_zero():
    a = -np.linspace(140, 160, 32, dtype=F32)
    got = applied("ex2.approx.f32", a, into=F32)
    assert got[0] > 0 and not np.signbit(got).any() and (got[a < -151] == 0).all()


def test_a_double_reciprocal_is_a_first_guess():
    a = np.array([3.0, -7.5e100, 0.0, math.inf])
    got = applied("rcp.approx.ftz.f64", a, into=F64)
    assert (np.abs(got[:2] * a[:2] - 1) < 2.0**-19).all() and (got[:2] * a[:2] != 1).all()
    assert got[2:].tolist() == [math.inf, 0.0]
    assert (got[:2].view(U64) & U64(0xFFFFFFFF)).tolist() == [0, 0]


INTS = np.array([7, -7, 7, -7, 0, -(2**31), 2**31 - 1, 123456789], I32)
OTHERS = np.array([2, 2, -2, -2, 5, 3, -1, -987654], I32)


def wrapped(value, bits, signed):
    value &= (1 << bits) - 1
    return value - (1 << bits) if signed and value >> (bits - 1) else value


@pytest.mark.parametrize("name", ["add", "sub", "mul.lo", "mul.hi", "min", "max", "div", "rem"])
def test_integers_of_32_bits(name):
    exact = {
        "add": lambda a, b: a + b,
        "sub": lambda a, b: a - b,
        "mul.lo": lambda a, b: a * b,
        "mul.hi": lambda a, b: a * b >> 32,
        "min": min,
        "max": max,
        "div": lambda a, b: int(a / b),
        "rem": lambda a, b: int(math.fmod(a, b)),
    }[name]
    pairs = zip(INTS.tolist(), OTHERS.tolist(), strict=True)
    expected = [wrapped(exact(a, b), 32, True) for a, b in pairs]
    assert applied(f"{name}.s32", INTS, OTHERS, into=I32).tolist() == expected
    unsigned = list(zip(INTS.view(U32).tolist(), OTHERS.view(U32).tolist(), strict=True))
    if name == "div":
        exact = lambda a, b: a // b  # noqa: E731
    expected = [wrapped(exact(a, b), 32, False) for a, b in unsigned]
    assert applied(f"{name}.u32", INTS.view(U32), OTHERS.view(U32), into=U32).tolist() == expected


def test_upper_halves_of_products_of_64_bits():
    a = np.array([-(2**63), -(2**63), 2**63 - 1, -1, -1, 123456789012345678, 0x1_0000_0000, -7])
    b = np.array([-(2**63), 2**63 - 1, 2**63 - 1, -1, 1, -987654321098765432, 0xFFFF_FFFF, 3])
    pairs = list(zip(a.tolist(), b.tolist(), strict=True))
    assert applied("mul.hi.s64", a, b, into=np.int64).tolist() == [x * y >> 64 for x, y in pairs]
    unsigned = [(x % 2**64) * (y % 2**64) >> 64 for x, y in pairs]
    assert applied("mul.hi.u64", a.view(U64), b.view(U64), into=U64).tolist() == unsigned


def test_two_halves_at_once_do_not_carry_over():
    a, b = np.array([0x0001_FFFF], U32), np.array([0x0001_0001], U32)
    assert applied("add.s16x2", a, b, into=U32).tolist() == [0x0002_0000]


def test_wide_products_and_their_sums():
    a, b = INTS, OTHERS
    exact = [x * y for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    assert applied("mul.wide.s32", a, b, into=np.int64).tolist() == exact
    c = np.arange(8, dtype=np.int64)
    got = applied("mad.wide.s32", a, b, c, into=np.int64)
    assert got.tolist() == [e + i for i, e in enumerate(exact)]
    low = applied("mad.lo.s32", a, b, a, into=I32)
    assert low.tolist() == [
        wrapped(e + x, 32, True) for e, x in zip(exact, a.tolist(), strict=True)
    ]
    halves = np.array([65535, 3], U16)
    assert applied("mul.wide.u16", halves, halves, into=U32).tolist() == [65535**2, 9]


@pytest.mark.parametrize(
    "instruction",
    [
        "frobnicate.b32 %r2, %r0, %r0",
        "add.f32 %r2, %r0, %r0",
        "add.rz.f32 %r2, %r0, %r0",
        "div.full.f32 %r2, %r0, %r0",
        "lg2.approx.f32 %r2, %r0",
        "mad.hi.u64 %rd2, %rd9, %rd9, %rd9",
        "setp.foo.f32 %p1, %r0, %r0",
        "cvt.f32.f64 %r2, %rd9",
        "ld.local.b32 %r2, [%rd9]",
        "ld.global.nc.b32 %r2, [%rd9]",
        "mov.u32 %r2, %clock",
        "add.s32 %r2, %r0",
        "shfl.sync.bfly.b32 %r2, %r0, 1, 31, 15",
        "bar.sync 1",
        "bar.arrive 0",
        "atom.global.add.u32 %r2, [%rd9], 1",
    ],
)
def test_what_is_not_known_is_an_error(instruction):
    with pytest.raises(UnknownPtx):
        run(instruction + ";", np.zeros(32, U32))
