"""Bits, comparisons and conversions of one lane, with known answers."""

import math

import numpy as np
import pytest

from ptx.by_hand import applied, computed

F32, U16, U32, U64, I32 = np.float32, np.uint16, np.uint32, np.uint64, np.int32
NAN = math.nan


def test_shifts_go_as_far_as_they_are_told():
    a = np.array([0x80000001, 0x80000001, 0x80000001, 5], U32)
    by = np.array([1, 31, 40, 0], U32)
    assert applied("shl.b32", a, by, into=U32).tolist() == [2, 0x80000000, 0, 5]
    assert applied("shr.u32", a, by, into=U32).tolist() == [0x40000000, 1, 0, 5]
    assert applied("shr.s32", a, by, into=U32).tolist() == [0xC0000000, 0xFFFFFFFF, 0xFFFFFFFF, 5]


def test_bit_fields_and_bytes():
    a = np.array([0b1011_0100, 0xF0000000, 0xFFFFFFFF], U32)
    assert computed("bfe.u32 {0}, {1}, 2, 4", a, into=U32).tolist() == [0b1101, 0, 15]
    assert computed("bfe.s32 {0}, {1}, 2, 4", a, into=I32).tolist() == [-3, 0, -1]
    assert computed("bfe.s32 {0}, {1}, 28, 9", a, into=I32).tolist() == [0, -1, -1]
    assert computed("bfe.u32 {0}, {1}, 0, 0", a, into=U32).tolist() == [0, 0, 0]
    assert applied("popc.b32", a, into=U32).tolist() == [4, 4, 32]
    b = np.array([0x33221100], U32)
    got = computed("prmt.b32 {0}, {1}, {2}, 0x7530U", b, np.array([0x77665544], U32), into=U32)
    assert got.tolist() == [0x77553300]
    signs = computed("prmt.b32 {0}, {1}, 0, 0xB8B8U", np.array([0x80000000], U32), into=U32)
    assert signs.tolist() == [0xFF00FF00]


def test_logic():
    a, b = np.array([0b1100], U32), np.array([0b1010], U32)
    for name, expected in (("and", 0b1000), ("or", 0b1110), ("xor", 0b0110)):
        assert applied(f"{name}.b32", a, b, into=U32).tolist() == [expected]
    assert applied("not.b32", a, into=U32).tolist() == [0xFFFFFFF3]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("eq", [1, 0, 0, 0]),
        ("ne", [0, 1, 1, 0]),
        ("lt", [0, 1, 0, 0]),
        ("ge", [1, 0, 1, 0]),
        ("equ", [1, 0, 0, 1]),
        ("neu", [0, 1, 1, 1]),
        ("gtu", [0, 0, 1, 1]),
        ("num", [1, 1, 1, 0]),
        ("nan", [0, 0, 0, 1]),
    ],
)
@pytest.mark.parametrize("kind", ["f32", "bf16"])
def test_comparisons_with_nan(name, expected, kind):
    a, b = np.array([1, 1, 2, NAN], F32), np.array([1, 2, 1, 1], F32)
    if kind == "bf16":
        a, b = ((v.view(U32) >> U32(16)).astype(U16) for v in (a, b))
    got = computed(
        f"setp.{name}.{kind} %p1, {{1}}, {{2}}; selp.b32 {{0}}, 1, 0, %p1", a, b, into=U32
    )
    assert got.tolist() == expected


def test_a_comparison_of_two_halves_gives_two_predicates():
    both = np.array([0x3F80_4000], U32)  # 1.0 above, 2.0 below
    test = "setp.gt.bf16x2 %p1|%p2, {1}, {2}; selp.b32 %r1, 1, 0, %p1; selp.b32 {0}, 2, %r1, %p2"
    assert computed(test, both, np.array([0x3F80_3F80], U32), into=U32).tolist() == [1]


def test_signed_and_unsigned_comparisons_differ():
    a, b = np.array([-1], I32), np.array([1], I32)
    for name, expected in (("lt.s32", 1), ("lt.u32", 0)):
        got = computed(f"setp.{name} %p1, {{1}}, {{2}}; selp.b32 {{0}}, 1, 0, %p1", a, b, into=U32)
        assert got.tolist() == [expected]


def test_conversions_to_integers_clip_and_round():
    a = np.array([2.5, -2.5, 3e10, -3e10, NAN, 0.99], F32)
    top, bottom = 2**31 - 1, -(2**31)
    for how, expected in {
        "rzi": [2, -2, top, bottom, 0, 0],
        "rmi": [2, -3, top, bottom, 0, 0],
        "rpi": [3, -2, top, bottom, 0, 1],
        "rni": [2, -2, top, bottom, 0, 1],
    }.items():
        assert computed(f"cvt.{how}.s32.f32 {{0}}, {{1}}", a, into=I32).tolist() == expected
    assert computed("cvt.rmi.f32.f32 {0}, {1}", a[:2], into=F32).tolist() == [2.0, -3.0]


def test_conversions_between_widths():
    a = np.array([-1, 5], I32)
    assert computed("cvt.s64.s32 {0}, {1}", a, into=np.int64).tolist() == [-1, 5]
    assert computed("cvt.u64.u32 {0}, {1}", a, into=U64).tolist() == [2**32 - 1, 5]
    assert computed("cvt.u16.u32 {0}, {1}", np.array([0x12345], U32), into=U16).tolist() == [0x2345]
    assert computed("cvt.rn.f32.s32 {0}, {1}", np.array([2**24 + 1], I32), into=F32)[0] == 2**24
    assert computed("cvt.rn.f32.f64 {0}, {1}", np.array([0.1]), into=F32)[0] == F32(0.1)
    assert computed("cvt.rn.f16.f32 {0}, {1}", np.array([0.1], F32), into=np.float16)[
        0
    ] == np.float16(0.1)


def test_bf16_rounds_to_nearest_even():
    a = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x7F7FFFFF, 0x7FC00001], U32)
    got = computed("cvt.rn.bf16.f32 {0}, {1}", a, into=U16)
    assert got.tolist() == [0x3F80, 0x3F82, 0x3F81, 0x7F80, 0x7FFF]
    assert computed("cvt.f32.bf16 {0}, {1}", got, into=U32).tolist()[:2] == [0x3F800000, 0x3F820000]
    pair = computed(
        "cvt.rn.bf16x2.f32 {0}, {1}, {2}", a[:1], np.array([2], F32).view(U32), into=U32
    )
    assert pair.tolist() == [0x3F80_4000]  # the first source is the upper half


def test_halves_are_packed_the_lower_first():
    pack = "mov.b64 %rd2, {{{1}, {2}}}; mov.b64 {{_, {0}}}, %rd2"
    assert computed(pack, np.array([1], U32), np.array([2], U32), into=U32).tolist() == [2]
