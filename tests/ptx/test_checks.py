"""What no device reports: bounds, alignment, what nothing wrote, and races."""

import numpy as np
import pytest

from ptx.by_hand import run
from ptx.memory import GlobalMemory, Misaligned, OutOfBounds, Unwritten
from ptx.races import Race, RaceLog

U32 = np.uint32
ORDERS = pytest.mark.parametrize("order", [None, 0, 1])


def words(count=32):
    return np.zeros(count, U32)


@pytest.mark.parametrize("offset", [-4, 128, 1 << 30])
@pytest.mark.parametrize("access", ["ld.global.b32 %r2, [%rd11]", "st.global.b32 [%rd11], %r0"])
def test_an_access_outside_of_a_tensor(access, offset):
    first, second = words(), words()
    body = f"setp.eq.b32 %p1, %r0, 0; add.s64 %rd11, %rd0, {offset}; @%p1 {access};"
    with pytest.raises(OutOfBounds, match="by_hand.py:2"):
        run(body, first, second)
    assert not second.any()


def test_an_address_of_no_tensor():
    with pytest.raises(OutOfBounds, match="in no tensor"):
        run("mov.b64 %rd10, 0; ld.global.b32 %r2, [%rd10];", words())


def test_of_a_storage_only_what_was_passed_may_be_touched():
    memory = GlobalMemory(RaceLog(32, 1, [""]))
    storage, lane = np.arange(64, dtype=U32), np.arange(1)
    address = memory.map(storage.view(np.uint8), 64, 128, 4)

    def read(at):
        return memory.load(np.array([at], np.uint64), 4, 1, lane).tolist()

    assert read(address) == [[16]] and read(address + 60) == [[31]]
    for outside in (address - 4, address + 64):
        with pytest.raises(OutOfBounds, match="bytes 64 to 128 were passed"):
            read(outside)
    memory.map(storage.view(np.uint8), 192, 256, 4)  # another view of the same storage
    assert read(address + 128) == [[48]]
    with pytest.raises(OutOfBounds):
        read(address + 124)


def test_the_last_words_of_a_vector_count():
    body = "mad.wide.u32 %rd10, %r0, 16, %rd0; ld.global.v4.b32 {%r2, %r3, %r4, %r5}, [%rd10];"
    run(body, words(128))
    with pytest.raises(OutOfBounds, match="of a storage of 508"):
        run(body, words(127))


@pytest.mark.parametrize(
    "access",
    [
        "ld.global.v4.b32 {%r2, %r3, %r4, %r5}, [%rd0+8]",
        "ld.global.b64 %rd11, [%rd0+4]",
        "st.global.b16 [%rd0+1], %rs0",
        "ld.global.v2.b32 {%r2, %r3}, [%rd0+4]",
    ],
)
def test_a_misaligned_access(access):
    with pytest.raises(Misaligned):
        run(f"setp.eq.b32 %p1, %r0, 0; @%p1 {access};", words())


def test_shared_memory_ends_and_is_aligned():
    run("setp.eq.b32 %p1, %r0, 0; @%p1 st.shared.b32 [60], %r0;", shared=64)
    with pytest.raises(OutOfBounds, match="shared memory of 64 bytes"):
        run("setp.eq.b32 %p1, %r0, 0; @%p1 st.shared.b32 [64], %r0;", shared=64)
    with pytest.raises(Misaligned):
        run("setp.eq.b32 %p1, %r0, 0; @%p1 st.shared.v2.b32 [4], {%r0, %r0};", shared=64)


_PREFIX = (
    "shl.b32 %r2, %r0, 2; setp.lt.u32 %p1, %r0, 31; @%p1 st.shared.b32 [%r2], %r0; bar.sync 0;"
)


def test_shared_memory_that_nothing_wrote_is_not_read():
    run(_PREFIX + "@%p1 ld.shared.b32 %r3, [%r2];", shared=128)
    with pytest.raises(Unwritten):
        run(_PREFIX + "ld.shared.b32 %r3, [%r2];", shared=128)


def test_bytes_of_a_vector_that_nothing_depends_on_may_be_unwritten():
    load = "setp.eq.b32 %p2, %r0, 0; {} @%p2 ld.shared.v4.b32 {{%r4, %r5, %r6, %r7}}, [112];"
    with pytest.raises(Unwritten):
        run(_PREFIX + load.format(""), shared=128)
    run(_PREFIX + load.format('.pragma "used_bytes_mask 0xfff";'), shared=128)


_NEIGHBOUR = """
    shl.b32 %r2, %r0, 2;
    st.shared.b32 [%r2], %r0;
    {barrier}
    xor.b32 %r3, %r2, {distance};
    ld.shared.b32 %r4, [%r3];
"""


@ORDERS
@pytest.mark.parametrize("distance", [4, 128])
def test_a_read_of_what_another_lane_wrote_needs_a_barrier(distance, order):
    with pytest.raises((Race, Unwritten)):
        run(_NEIGHBOUR.format(barrier="", distance=distance), threads=64, shared=256, order=order)
    body = _NEIGHBOUR.format(barrier="bar.sync 0;", distance=distance)
    run(body, threads=64, shared=256, order=order)


@ORDERS
def test_a_write_over_what_another_lane_read_needs_a_barrier(order):
    body = _NEIGHBOUR.format(barrier="bar.sync 0;", distance=128) + "{} st.shared.b32 [%r2], 7;"
    with pytest.raises(Race, match="shared memory: lane"):
        run(body.format(""), threads=64, shared=256, order=order)
    run(body.format("bar.sync 0;"), threads=64, shared=256, order=order)


def test_no_barrier_is_needed_by_one_lane():
    run(
        "shl.b32 %r2, %r0, 2; st.shared.b32 [%r2], 1; ld.shared.b32 %r3, [%r2];"
        "st.shared.b32 [%r2], %r3;",
        shared=128,
    )


@ORDERS
def test_two_lanes_may_write_one_place_only_alike(order):
    body = "st.global.b32 [%rd0], {};"
    assert run(body.format("5"), words(), threads=64, order=order).same_values == 1
    with pytest.raises(Race, match="a tensor: lane"):
        run(body.format("%r0"), words(), threads=64, order=order)


@ORDERS
def test_a_tensor_is_read_and_written_by_two_lanes_with_a_barrier_only(order):
    body = """
    ld.global.b32 %r2, [%rd0];
    {barrier}
    setp.eq.b32 %p1, %r0, 0;
    @%p1 st.global.b32 [%rd0], 9;
    """
    with pytest.raises(Race):
        run(body.format(barrier=""), words(), threads=64, order=order)
    run(body.format(barrier="bar.sync 0;"), words(), threads=64, order=order)


@ORDERS
def test_a_race_is_one_however_far_apart_its_ends_are(order):
    far = "add.s32 %r5, %r0, 1;" * 300
    body = (
        f"ld.global.b32 %r2, [%rd0]; {far} setp.eq.b32 %p1, %r0, 0; @%p1 st.global.b32 [%rd0], 9;"
    )
    with pytest.raises(Race, match="ld.global.b32 at by_hand.py:2.*st.global.b32"):
        run(body, words(), threads=64, order=order)


@ORDERS
@pytest.mark.parametrize("threads", [32, 1024])  # of one group of CTAs, and of several
def test_ctas_write_no_element_together(threads, order):
    one = "setp.eq.b32 %p1, %r0, 0; @%p1 st.global.b32 [%rd0], 5;"
    run(one, words(), threads=threads, order=order)
    with pytest.raises(Race, match="CTA"):
        run(one, words(), threads=threads, grid=5, order=order)


@ORDERS
@pytest.mark.parametrize("threads", [32, 1024])
def test_a_cta_writes_nothing_that_another_reads(threads, order):
    body = """
    setp.eq.b32 %p1, %r0, 0;
    @%p1 ld.global.b32 %r2, [%rd0];
    setp.eq.b32 %p2, %r1, 3;
    and.pred %p1, %p1, %p2;
    @%p1 st.global.b32 [%rd0], 5;
    """
    run("ld.global.b32 %r2, [%rd0];", words(), threads=threads, grid=5, order=order)
    with pytest.raises(Race, match="CTA"):
        run(body, words(), threads=threads, grid=5, order=order)
