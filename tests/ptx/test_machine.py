"""Lanes, branches, barriers and what a warp computes together, with known answers."""

import numpy as np
import pytest

from ptx import machine
from ptx.by_hand import computed, run
from ptx.memory import EmulationError
from ptx.parser import UnknownPtx, parse

U32, I32 = np.uint32, np.int32
LANES = np.arange(32, dtype=U32)

_LOOP = """
    add.s64 %rd10, %rd0, %rd9;
    mov.b32 %r2, 0;
    mov.b32 %r3, 0;
$L__loop:
    add.s32 %r3, %r3, %r2;
    add.s32 %r2, %r2, 1;
    setp.le.u32 %p1, %r2, %r0;
    @%p1 bra $L__loop;
    st.global.b32 [%rd10], %r3;
"""


@pytest.mark.parametrize("order", [None, 0, 1])
def test_every_lane_loops_as_often_as_it_must(order):
    result = np.zeros(64, U32)
    counts = run(_LOOP, result, threads=64, order=order)
    assert result.tolist() == [n * (n + 1) // 2 for n in range(64)]
    assert counts.instructions > 64


_BRANCH = """
    add.s64 %rd10, %rd0, %rd9;
    setp.lt.u32 %p1, %r0, 5;
    @!%p1 bra $L__other;
    mov.b32 %r2, 1;
    bra.uni $L__join;
$L__other:
    mov.b32 %r2, 2;
$L__join:
    st.global.b32 [%rd10], %r2;
"""


@pytest.mark.parametrize("order", [None, 3])
def test_both_sides_of_a_branch(order):
    result = np.zeros(32, U32)
    run(_BRANCH, result, order=order)
    assert result.tolist() == [1] * 5 + [2] * 27


def test_a_guarded_instruction_leaves_the_others_lanes_alone():
    result = np.full(32, 7, U32)
    body = """
    add.s64 %rd10, %rd0, %rd9;
    mov.b32 %r2, 3;
    setp.eq.b32 %p1, %r0, 4;
    @%p1 mov.b32 %r2, 9;
    st.global.b32 [%rd10], %r2;
    """
    run(body, result)
    assert result.tolist() == [9 if n == 4 else 3 for n in range(32)]


def test_a_register_that_nothing_wrote_is_no_zero():
    assert computed("mov.b32 {0}, %r7", LANES, into=U32)[0] not in (0, 1)


_REVERSE = """
    add.s64 %rd10, %rd0, %rd9;
    shl.b32 %r2, %r0, 2;
    st.shared.b32 [%r2], %r0;
    bar.sync 0;
    sub.s32 %r3, 63, %r0;
    shl.b32 %r3, %r3, 2;
    ld.shared.b32 %r4, [%r3];
    mad.lo.s32 %r4, %r1, 100, %r4;
    mad.wide.u32 %rd10, %r1, 256, %rd10;
    st.global.b32 [%rd10], %r4;
"""


@pytest.mark.parametrize("order", [None, 0, 1, 2])
@pytest.mark.parametrize("grid", [1, 3, 40])
def test_ctas_have_their_own_shared_memory(grid, order):
    result = np.zeros(64 * grid, U32)
    run(_REVERSE, result, threads=64, grid=grid, shared=256, order=order)
    expected = np.arange(63, -1, -1) + 100 * np.arange(grid)[:, None]
    assert result.tolist() == expected.reshape(-1).tolist()


_PARTLY = """
    setp.lt.u32 %p1, %r0, 40;
    @%p1 bra $L__skip;
    bar.sync 0;
$L__skip:
"""


@pytest.mark.parametrize("order", [None, 0])
def test_a_barrier_demands_all_lanes_of_a_cta(order):
    with pytest.raises(EmulationError, match="bar.sync at by_hand.py:2 reached by a part of a CTA"):
        run(_PARTLY, threads=64, order=order)


@pytest.mark.parametrize("order", [None, 0])
def test_a_barrier_is_one_place_in_the_code(order):
    body = """
    setp.lt.u32 %p1, %r0, 32;
    @%p1 bra $L__skip;
    bar.sync 0;
    bra.uni $L__end;
$L__skip:
    bar.sync 0;
$L__end:
    """
    with pytest.raises(EmulationError, match="different barriers"):
        run(body, threads=64, order=order)


def test_the_barrier_of_a_warp_is_known_where_it_is_that_of_the_cta():
    body = _REVERSE.replace("bar.sync 0", "bar.warp.sync -1").replace("63,", "31,")
    result = np.zeros(32, U32)
    run(body, result, threads=32, shared=128)
    assert result.tolist() == list(range(31, -1, -1))
    with pytest.raises(UnknownPtx, match="bar.warp.sync"):
        run(body, np.zeros(64, U32), threads=64, shared=256)


def test_lanes_of_a_guarded_barrier_are_a_part_too():
    with pytest.raises(EmulationError, match="part of a CTA"):
        run("setp.lt.u32 %p1, %r0, 5; @%p1 bar.sync 0;")


def test_a_loop_without_an_end_is_an_error(monkeypatch):
    monkeypatch.setattr(machine, "_MOST_INSTRUCTIONS", 1000)
    with pytest.raises(EmulationError, match="does it end"):
        run("$L__for_ever: bra.uni $L__for_ever;")


def test_shuffles():
    def shuffle(how):
        return computed(f"shfl.sync.{how}, -1", LANES, into=U32).tolist()

    assert shuffle("bfly.b32 {0}, {1}, 3, 31") == [n ^ 3 for n in range(32)]
    assert shuffle("up.b32 {0}, {1}, 2, 0") == [max(n - 2, n if n < 2 else 0) for n in range(32)]
    assert shuffle("down.b32 {0}, {1}, 2, 31") == [n + 2 if n < 30 else n for n in range(32)]
    assert shuffle("idx.b32 {0}, {1}, 5, 31") == [5] * 32
    eights = [min(n + 1, n // 8 * 8 + 7) for n in range(32)]
    assert shuffle("down.b32 {0}, {1}, 1, 0x1807") == eights  # segments of 8 lanes
    reached = "shfl.sync.up.b32 %r2|%p1, {1}, 1, 0, -1; selp.b32 {0}, 1, 0, %p1"
    assert computed(reached, LANES, into=U32).tolist() == [0] + [1] * 31


@pytest.mark.parametrize(
    ("how", "expected"), [("add.s32", -48), ("min.s32", -17), ("max.s32", 14), ("max.u32", -1)]
)
def test_reductions(how, expected):
    values = LANES.view(I32) - 17
    got = computed(f"redux.sync.{how} {{0}}, {{1}}, -1", values, into=I32)
    assert got.tolist() == [expected] * 32


@pytest.mark.parametrize(
    "instruction", ["shfl.sync.bfly.b32 %r2, %r0, 1, 31, -1", "redux.sync.add.s32 %r2, %r0, %r3"]
)
def test_a_part_of_a_warp_computes_nothing_together(instruction):
    body = f"mov.b32 %r3, -1; setp.lt.u32 %p1, %r0, 5; @%p1 {instruction};"
    with pytest.raises(EmulationError, match="part of a warp"):
        run(body)


def test_matrices_are_spread_over_a_warp():
    body = """
    add.s64 %rd10, %rd0, %rd9;
    shl.b32 %r2, %r0, 4;
    mov.b32 %r3, %r0;
    stmatrix.sync.aligned.m8n8.x1.shared.b16 [%r2], {%r3};
    bar.sync 0;
    shl.b32 %r4, %r0, 2;
    ld.shared.b32 %r5, [%r4];
    ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r6}, [%r2];
    mad.lo.s32 %r5, %r6, 100, %r5;
    st.global.b32 [%rd10], %r5;
    """
    result = np.zeros(32, U32)
    # rows of 16 bytes after each other: lane n holds the words of row n // 4
    run(body, result, shared=512)
    assert result.tolist() == [101 * n for n in range(32)]


def test_sources_and_labels_are_read():
    program = parse(
        """
.visible .entry k(
	.param .u64 .ptr .global .align 1 k_param_0,
	.param .f64 k_param_1
)
.reqntid 64
{
	.reg .b32 %r<3>;
$L__func_begin0:
	.loc	2 43 17                         // standard.py:43:17
	{ .reg .b16 tmp; mov.b32 {tmp, _}, %r1; mov.b32 %r2, {tmp, tmp}; }
	.pragma "used_bytes_mask 0xfff";
	@!%p1 ld.shared.v4.b32 	{%r1, %r2, %r1, %r2}, [%r1+-4];  // here
	ret;
}
	.file	2 "/a/path/standard.py"
"""
    )
    assert (program.name, program.threads) == ("k", 64)
    assert program.parameters == (("k_param_0", "u64"), ("k_param_1", "f64"))
    load = program.code[2]
    assert (load.source, load.used, load.guard, load.negated) == (
        "standard.py:43",
        0xFFF,
        "%p1",
        True,
    )
    assert load.operands[1].offset == -4 and load.operands[0][2] == "%r1"
    assert program.registers["tmp@1"] == 16 and program.code[0].operands[0] == ("tmp@1", "_")
    assert program.labels == {"$L__func_begin0": 0}


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".visible .entry k()\n{\n}",
        ".visible .entry k()\n.reqntid 32\n{\n.shared .b8 a[4];\n}",
        ".visible .entry k()\n.reqntid 32\n{\nbra $L__nowhere;\n}",
        ".visible .entry k()\n.reqntid 32\n{\n$$$;\n}",
    ],
)
def test_text_that_is_not_known_is_an_error(text):
    with pytest.raises(UnknownPtx):
        parse(text)
