"""Random starting points in an eps-ball around x, drawn and applied in one launch."""

import triton
import triton.language as tl

from ..addressing import box_of, load_bounds, load_unit, movable_grad, other_layout, scalar_or_row
from ..aot import AotCase, argument_types
from ..box import planes
from ..geometry import blocks, compute_dtype, elementwise_geometry, row_geometry
from ..launching import launch
from ..rounding import clamp_keeping_nan, divide, root
from ..steps.l1_projection import (
    l1_kept,
    l1_room,
    l1_search,
    l1_search_end,
    l1_search_start,
    l1_shrunk,
)
from . import streams
from .philox import normals, signed_exponentials, uniforms

_UNIFORM = tl.constexpr(streams.START_UNIFORM)
_NORMAL = tl.constexpr(streams.START_NORMAL)
_EXPONENTIAL = tl.constexpr(streams.START_EXPONENTIAL)

_TINY = tl.constexpr(1e-12)  # guards 0/0: a draw of zeros starts at x (D = 1, one in 2^24)

_L1_BLOCK = 2048  # one Philox call a thread; with 8 warps fp64 NHWC spills (sm_90)

ELEMENTWISE = ("linf_uniform", "linf_gaussian")  # many programs a row; the other kinds need a norm


@triton.jit
def row_offset(e, D, INNER, CHANNELS_LAST: tl.constexpr):
    """Where element e lies in its row; e counts in C order, whatever the layout."""
    if CHANNELS_LAST:
        offset = other_layout(e, D, INNER)
    else:
        offset = e
    return offset


@triton.jit
def load_row(
    x_ptr, base, e, D, INNER, CHANNELS_LAST: tl.constexpr, DTYPE: tl.constexpr
):  # fmt: skip
    offset = row_offset(e, D, INNER, CHANNELS_LAST)
    return tl.load(x_ptr + base + offset, mask=e < D, other=0.0).to(DTYPE)


@triton.jit
def store_start(out_ptr, base, e, x, delta, lo, hi, D, INNER, CHANNELS_LAST: tl.constexpr):
    """Store clamp(x + delta, lo, hi)."""
    start = clamp_keeping_nan(x + delta, lo, hi).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + base + row_offset(e, D, INNER, CHANNELS_LAST), start, mask=e < D)


@triton.jit(do_not_specialize=["seed"])  # no new machine code for each seed
def elementwise_start_kernel(
    out_ptr, x_ptr, sample_ids_ptr, draws_ptr, eps_rows_ptr, box_ptr,
    eps: "fp64", lo: "fp64", hi: "fp64", scale: "fp64", seed: "i64", D, INNER,  # noqa: F821
    KIND: tl.constexpr, PER_SAMPLE_EPS: tl.constexpr, SCALE_IS_EPS: tl.constexpr,
    BOX: tl.constexpr, CHANNELS_LAST: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One block of one row: four elements for each Philox call."""
    blocks = tl.cdiv(D, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    start = (tl.program_id(0) % blocks) * BLOCK
    call = start // 4 + tl.arange(0, BLOCK // 4)
    sample_id = tl.load(sample_ids_ptr + row)
    draw = tl.load(draws_ptr + row)
    radius = scalar_or_row(eps, eps_rows_ptr, row, PER_SAMPLE_EPS, DTYPE)
    if BOX:
        box_ptr = box_of(box_ptr, row, D, BOX)
    if BOX == 3:
        radius *= load_unit(
            box_ptr, row_offset(start + tl.arange(0, BLOCK), D, INNER, CHANNELS_LAST),
            start + tl.arange(0, BLOCK) < D, D, DTYPE,
        )  # fmt: skip
    if KIND == "linf_uniform":
        u = uniforms(seed, sample_id, draw, call, _UNIFORM).to(DTYPE)
        delta = (2.0 * u - 1.0) * radius
    else:
        deviation = radius if SCALE_IS_EPS else tl.full([], scale, DTYPE)
        delta = normals(seed, sample_id, draw, call, _NORMAL).to(DTYPE) * deviation
        delta = tl.minimum(tl.maximum(delta, -radius), radius)
    e = start + tl.arange(0, BLOCK)
    x = load_row(x_ptr, row * D, e, D, INNER, CHANNELS_LAST, DTYPE)
    if BOX:
        at = row_offset(e, D, INNER, CHANNELS_LAST)
        low, high = load_bounds(box_ptr, at, e < D, D, DTYPE)
    else:
        low = tl.full([], lo, DTYPE)
        high = tl.full([], hi, DTYPE)
    store_start(out_ptr, row * D, e, x, delta, low, high, D, INNER, CHANNELS_LAST)


@triton.jit
def draw_direction(
    seed, sample_id, draw, call, KIND: tl.constexpr, DTYPE: tl.constexpr
):  # fmt: skip
    if KIND == "l1_uniform":
        value = signed_exponentials(seed, sample_id, draw, call, _EXPONENTIAL)
    else:
        value = normals(seed, sample_id, draw, call, _NORMAL)
    return value.to(DTYPE)


@triton.jit(do_not_specialize=["seed"])
def ball_start_kernel(
    out_ptr, x_ptr, sample_ids_ptr, draws_ptr, eps_rows_ptr, box_ptr,
    eps: "fp64", lo: "fp64", hi: "fp64", scale: "fp64", seed: "i64", D, INNER,  # noqa: F821
    KIND: tl.constexpr, PER_SAMPLE_EPS: tl.constexpr, SCALE_IS_EPS: tl.constexpr,
    BOX: tl.constexpr, CHANNELS_LAST: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row: the norm of its draw, then the draw once more, scaled (cheaper than storing it)."""
    row = tl.program_id(0).to(tl.int64)
    sample_id = tl.load(sample_ids_ptr + row)
    draw = tl.load(draws_ptr + row)
    radius = scalar_or_row(eps, eps_rows_ptr, row, PER_SAMPLE_EPS, DTYPE)
    if BOX:
        box_ptr = box_of(box_ptr, row, D, BOX)
    else:
        low = tl.full([], lo, DTYPE)
        high = tl.full([], hi, DTYPE)
    calls = tl.arange(0, BLOCK // 4)
    offset = tl.arange(0, BLOCK)
    # elements drawn beyond the sample: they make the projection of a sphere uniform in a ball
    count = D
    if KIND == "l2_uniform":
        count = D + 2
    if KIND == "l1_uniform":
        count = D + 1
    total = tl.zeros([BLOCK], DTYPE)
    for start in range(0, count, BLOCK):
        v = draw_direction(seed, sample_id, draw, start // 4 + calls, KIND, DTYPE)
        if BOX:
            e = start + offset
            at = row_offset(e, D, INNER, CHANNELS_LAST)
            v = tl.where(e < D, movable_grad(v, box_ptr, at, e < D, D, DTYPE), v)
        size = tl.abs(v) if KIND == "l1_uniform" else v * v
        total += tl.where(start + offset < count, size, 0.0)
    norm = tl.sum(total, 0)
    if KIND != "l1_uniform":
        norm = root(norm, DTYPE)
    if KIND == "l2_gaussian":
        deviation = radius if SCALE_IS_EPS else tl.full([], scale, DTYPE)
        inside = norm * deviation <= radius
        factor = divide(radius, tl.maximum(norm, _TINY), DTYPE)
        factor = tl.where(inside, deviation, factor)
    else:
        factor = divide(radius, tl.maximum(norm, _TINY), DTYPE)
    for start in range(0, D, BLOCK):
        v = draw_direction(seed, sample_id, draw, start // 4 + calls, KIND, DTYPE)
        e = start + offset
        x = load_row(x_ptr, row * D, e, D, INNER, CHANNELS_LAST, DTYPE)
        delta = v * factor
        if BOX:
            at = row_offset(e, D, INNER, CHANNELS_LAST)
            least, most = load_bounds(box_ptr, at, e < D, D, DTYPE)
            if BOX == 3:
                delta *= load_unit(box_ptr, at, e < D, D, DTYPE)
            store_start(out_ptr, row * D, e, x, delta, least, most, D, INNER, CHANNELS_LAST)
        else:
            store_start(out_ptr, row * D, e, x, delta, low, high, D, INNER, CHANNELS_LAST)


@triton.jit(do_not_specialize=["seed"])
def l1_gaussian_start_kernel(
    out_ptr, x_ptr, sample_ids_ptr, draws_ptr, eps_rows_ptr, box_ptr,
    eps: "fp64", lo: "fp64", hi: "fp64", scale: "fp64", seed: "i64", D, INNER,  # noqa: F821
    KIND: tl.constexpr, PER_SAMPLE_EPS: tl.constexpr, SCALE_IS_EPS: tl.constexpr,
    BOX: tl.constexpr, CHANNELS_LAST: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row: a Gaussian draw, projected onto the L1 ball and the box together."""
    row = tl.program_id(0).to(tl.int64)
    base = row * D
    sample_id = tl.load(sample_ids_ptr + row)
    draw = tl.load(draws_ptr + row)
    radius = scalar_or_row(eps, eps_rows_ptr, row, PER_SAMPLE_EPS, DTYPE)
    deviation = radius if SCALE_IS_EPS else tl.full([], scale, DTYPE)
    low = tl.full([], lo, DTYPE)
    high = tl.full([], hi, DTYPE)
    calls = tl.arange(0, BLOCK // 4)
    offset = tl.arange(0, BLOCK)
    guess, under, above, mass, slope, turn = l1_search_start(DTYPE)
    while guess >= 0:
        kept_sum = tl.zeros([BLOCK], DTYPE)
        falling_sum = tl.zeros([BLOCK], DTYPE)
        for start in range(0, D, BLOCK):
            e = start + offset
            u = normals(seed, sample_id, draw, start // 4 + calls, _NORMAL).to(DTYPE) * deviation
            u = tl.where(e < D, u, 0.0)
            x = load_row(x_ptr, base, e, D, INNER, CHANNELS_LAST, DTYPE)
            kept, falling = l1_kept(
                tl.abs(u), l1_room(u, x, low, high), guess.to(DTYPE, bitcast=True)
            )
            kept_sum += kept
            falling_sum += falling
        guess, under, above, mass, slope, turn = l1_search(
            guess, under, above, mass, slope, turn, tl.sum(kept_sum, 0), tl.sum(falling_sum, 0),
            radius, DTYPE,
        )  # fmt: skip
    t, correction, outside = l1_search_end(under, above, mass, slope, radius, DTYPE)
    for start in range(0, D, BLOCK):
        e = start + offset
        u = normals(seed, sample_id, draw, start // 4 + calls, _NORMAL).to(DTYPE) * deviation
        x = load_row(x_ptr, base, e, D, INNER, CHANNELS_LAST, DTYPE)
        delta = tl.where(outside, l1_shrunk(u, x, t, correction, low, high), u)
        store_start(out_ptr, base, e, x, delta, low, high, D, INNER, CHANNELS_LAST)


def _kernel(kind, size):
    """(kernel, BLOCK, num_warps)."""
    if kind in ELEMENTWISE:
        return elementwise_start_kernel, *elementwise_geometry(size)
    if kind == "l1_gaussian":
        block, warps = row_geometry(size, _L1_BLOCK)
        return l1_gaussian_start_kernel, block, 2 * warps
    return ball_start_kernel, *row_geometry(size)


def launch_random_start(
    out, x, sample_ids, draws, eps, eps_rows, lo, hi, seed, kind, scale, box, *, inner,
    channels_last,
):  # fmt: skip
    """Launch one random start over dense rows; one launch. inner: H * W, if channels_last."""
    if x.numel() == 0:
        return
    batch = x.shape[0]
    size = x.numel() // batch
    kernel, block, warps = _kernel(kind, size)
    programs = batch * blocks(size, block) if kind in ELEMENTWISE else batch
    launch(
        kernel, programs,
        (out, x, sample_ids, draws, eps_rows, box,
         eps, lo, hi, 0.0 if scale is None else scale, seed, size, inner),
        num_warps=warps, KIND=kind, PER_SAMPLE_EPS=eps_rows is not None, SCALE_IS_EPS=scale is None,
        BOX=planes(box), CHANNELS_LAST=channels_last, DTYPE=compute_dtype(x), BLOCK=block,
    )  # fmt: skip


def aot_cases():
    """The specialisations whose machine code is checked."""
    plain = dict(
        PER_SAMPLE_EPS=False, SCALE_IS_EPS=True, BOX=0, CHANNELS_LAST=False, DTYPE=tl.float32
    )  # fmt: skip

    def case(name, kind, vectorised, **more):
        kernel, block, warps = _kernel(kind, 3072)
        return AotCase(
            f"start_{name}",
            kernel,
            argument_types(kernel, draws_ptr="*i32", **more.pop("signature", {})),
            plain | dict(KIND=kind, BLOCK=block) | more,
            warps,
            unaligned=("seed",),
            vectorised=vectorised,
        )

    half = dict(out_ptr="*bf16", x_ptr="*bf16")
    double = dict(out_ptr="*fp64", x_ptr="*fp64", eps_rows_ptr="*fp64")
    return [
        case("linf_uniform", "linf_uniform", True),
        case("linf_uniform_rows", "linf_uniform", True, PER_SAMPLE_EPS=True),
        case("linf_uniform_bf16", "linf_uniform", True, signature=half),
        case("linf_uniform_nhwc", "linf_uniform", False, CHANNELS_LAST=True),
        case("linf_gaussian", "linf_gaussian", True),
        case("l2_uniform", "l2_uniform", True),
        case("l2_sphere_nhwc", "l2_sphere", False, CHANNELS_LAST=True),
        case("l2_gaussian", "l2_gaussian", True, SCALE_IS_EPS=False),
        case("l2_uniform_fp64", "l2_uniform", False, signature=double, DTYPE=tl.float64),
        case("l1_uniform", "l1_uniform", True),
        case("l1_gaussian", "l1_gaussian", True),
        case(
            "l1_gaussian_fp64_nhwc", "l1_gaussian", False, signature=double, DTYPE=tl.float64,
            CHANNELS_LAST=True, PER_SAMPLE_EPS=True,
        ),
    ]  # fmt: skip
