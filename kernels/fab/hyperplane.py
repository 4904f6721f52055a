"""Projection of rows onto hyperplanes inside a box, alone: one launch for rows of any length."""

import triton
import triton.language as tl

from ..aot import AotCase, argument_types
from ..geometry import blocks, compute_dtype, row_geometry
from ..launching import launch
from .long import load_pair, search_row
from .projection import displacement, tied_share, weight_and_room

_CHUNKS = 2048, 1024  # elements read at once


@triton.jit
def hyperplane_kernel(
    out_ptr, t_ptr, w_ptr, b_ptr, lo: "fp64", hi: "fp64", D,  # noqa: F821
    NORM: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row a program, read anew at each turn of the search."""
    row = tl.program_id(0).to(tl.int64)
    base = row * D
    low = tl.full([], lo, DTYPE)
    high = tl.full([], hi, DTYPE)
    products = tl.zeros([BLOCK], DTYPE)
    for start in range(0, D, BLOCK):
        t, w = load_pair(t_ptr + base, w_ptr + base, start + tl.arange(0, BLOCK), D, True, DTYPE)
        products += t * w
    offset = tl.sum(products, 0) - tl.load(b_ptr + row).to(DTYPE)
    level, rest = search_row(
        t_ptr + base, w_ptr + base, D, True, offset, low, high, NORM, DTYPE, BLOCK
    )
    given = tl.full([], 0.0, DTYPE)
    for start in range(0, D, BLOCK):
        e = start + tl.arange(0, BLOCK)
        t, w = load_pair(t_ptr + base, w_ptr + base, e, D, True, DTYPE)
        weight, room = weight_and_room(t, w, offset, low, high, NORM)
        before = tl.zeros([BLOCK], DTYPE)
        if NORM == "l1":
            share = tied_share(weight, room, level, rest)
            before = given + tl.cumsum(share, 0) - share
            given += tl.sum(share, 0)
        d = displacement(weight, room, level, rest, before, NORM, DTYPE)
        tl.store(out_ptr + base + e, d.to(out_ptr.dtype.element_ty), mask=e < D)


def _geometry(size):
    """(BLOCK, num_warps): the shorter chunk where it spares an eighth of the row in idle lanes, as
    a quarter of the longer one's are at 3x32x32."""
    longer, shorter = _CHUNKS
    idle = blocks(size, longer) * longer - blocks(size, shorter) * shorter
    if size > longer and idle * 8 >= size:
        return shorter, 8
    return row_geometry(size, longer)


def launch_hyperplane_projection(out, points, w, b, *, lo, hi, norm):
    """One launch over dense (B, D) rows."""
    if points.numel() == 0:
        return
    batch, size = points.shape
    block, warps = _geometry(size)
    launch(
        hyperplane_kernel, batch,
        (out, points, w, b, lo, hi, size),
        num_warps=warps, NORM=norm, DTYPE=compute_dtype(points), BLOCK=block,
    )  # fmt: skip


def aot_cases():
    """Every norm in both chunks, aligned, and one row length that is not."""
    types = argument_types(hyperplane_kernel)

    def case(name, norm, size=3072, **demands):
        block, warps = _geometry(size)
        constants = dict(NORM=norm, DTYPE=tl.float32, BLOCK=block)
        return AotCase(name, hyperplane_kernel, types, constants, warps, **demands)

    return [
        case("hyperplane_linf", "linf", vectorised=True),
        case("hyperplane_l2", "l2", vectorised=True),
        case("hyperplane_l1", "l1"),
        case("hyperplane_linf_2048", "linf", 2048, vectorised=True),
        case("hyperplane_l2_2048", "l2", 2048, vectorised=True),
        case("hyperplane_l1_2048", "l1", 2048),
        case("hyperplane_unaligned", "linf", unaligned=("D",)),
    ]
