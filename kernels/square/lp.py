"""The Square Attack in L2 and L1: accept a proposal, make the next, one launch."""

import triton
import triton.language as tl

from ..addressing import scalar_or_row
from ..aot import AotCase, argument_types
from ..geometry import compute_dtype, power_of_two
from ..launching import launch
from .accept import accept, is_active, schedule
from .pyramid import channel_signs, tile_offset, write_proposal

_TILE = 2048  # elements held at once; fp64 spills with 4096 (sm_90)


@triton.jit(do_not_specialize=["seed"])  # no new machine code for each seed
def square_lp_kernel(
    new_ptr, best_ptr, x_ptr, loss_ptr, prediction_ptr, labels_ptr, best_loss_ptr, queries_ptr,
    wasted_ptr, slots_ptr, restarts_ptr, sample_ids_ptr, geometry_ptr, patterns_ptr,
    pattern_start_ptr, eps_rows_ptr, eps: "fp64", lo: "fp64", hi: "fp64",  # noqa: F821
    seed: "i64", K, QUERIES, C, H, W,  # noqa: F821
    NORM: tl.constexpr, PER_SAMPLE_EPS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    DTYPE: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """One slot a program, so that its scalars do not race."""
    row = tl.program_id(0).to(tl.int64)
    if is_active(slots_ptr, row):
        taken, accepted, cursor, fooled = accept(
            loss_ptr, prediction_ptr, labels_ptr, best_loss_ptr, queries_ptr, wasted_ptr,
            slots_ptr, row, K, QUERIES,
        )  # fmt: skip
        AREA = H * W
        D = (tl.full([], 1, tl.int64) * C) * AREA
        best = best_ptr + row * D
        x = x_ptr + row * D
        new = new_ptr + row * K * D
        if taken >= 0:
            for start in range(0, AREA, PIXELS):
                offset, inside, pixel = tile_offset(start, C, AREA, CHANNELS_LAST, CHANNELS, PIXELS)
                value = tl.load(new + taken * D + offset, mask=inside)
                tl.store(best + offset, value, mask=inside)
        tl.debug_barrier()
        if fooled == 0:
            restart = tl.load(restarts_ptr + row)
            sample_id = tl.load(sample_ids_ptr + row)
            radius = scalar_or_row(eps, eps_rows_ptr, row, PER_SAMPLE_EPS, DTYPE)
            low = tl.full([], lo, DTYPE)
            high = tl.full([], hi, DTYPE)
            for k in range(0, K):
                query = tl.minimum(cursor + k, QUERIES)
                tl.store(queries_ptr + row * K + k, query)
                if query < QUERIES:
                    draw = restart * QUERIES + query
                    write_proposal(
                        new + k * D, best, x, geometry_ptr + draw.to(tl.int64) * 6,
                        patterns_ptr + tl.load(pattern_start_ptr + draw),
                        channel_signs(seed, sample_id, draw, CHANNELS, DTYPE), radius, low, high,
                        C, AREA, W, NORM, CHANNELS_LAST, DTYPE, CHANNELS, PIXELS,
                    )  # fmt: skip
            schedule(slots_ptr, row, tl.minimum(cursor, QUERIES), QUERIES)


def _geometry(channels, area):
    """(CHANNELS, PIXELS, num_warps) of a tile: the whole image if it is small."""
    width = power_of_two(channels)
    pixels = max(16, min(power_of_two(area), _TILE // width))
    return width, pixels, min(16, max(1, width * pixels // 64))


def launch_square_lp(
    x_new, x_best, x, loss, prediction, labels, best_loss, queries, wasted, slot_state, restarts,
    sample_ids, geometry, patterns, pattern_start, eps, eps_rows, lo, hi, seed, query_count, norm,
    *, channels_last,
):  # fmt: skip
    """One launch over dense images that share a layout."""
    if x_best.numel() == 0:
        return
    batch, channels, height, width = x_best.shape
    tile_channels, pixels, warps = _geometry(channels, height * width)
    launch(
        square_lp_kernel, batch,
        (x_new, x_best, x, loss, prediction, labels, best_loss, queries, wasted, slot_state,
         restarts, sample_ids, geometry, patterns, pattern_start, eps_rows, eps, lo, hi, seed,
         queries.shape[1], query_count, channels, height, width),
        num_warps=warps, NORM=norm, PER_SAMPLE_EPS=eps_rows is not None,
        CHANNELS_LAST=channels_last, DTYPE=compute_dtype(x_best), CHANNELS=tile_channels,
        PIXELS=pixels,
    )  # fmt: skip


def aot_cases():
    """The specialisations whose machine code is checked."""
    integers = ("queries_ptr", "wasted_ptr", "restarts_ptr", "geometry_ptr", "pattern_start_ptr")
    types = argument_types(square_lp_kernel, **dict.fromkeys(integers, "*i32"))
    half = types | {n: "*bf16" for n in ("new_ptr", "best_ptr", "x_ptr")}
    sizes = ("seed", "K", "QUERIES", "C", "H", "W")

    def case(name, norm, channels, area, signature=types, **more):
        width, pixels, warps = _geometry(channels, area)
        constants = dict(NORM=norm, PER_SAMPLE_EPS=False, CHANNELS_LAST=False, DTYPE=tl.float32)
        constants |= more | dict(CHANNELS=width, PIXELS=pixels)
        return AotCase(
            f"square_{norm}_{name}", square_lp_kernel, signature, constants, warps, unaligned=sizes
        )

    double = types | {n: "*fp64" for n, t in types.items() if t == "*fp32" and n != "patterns_ptr"}
    return [
        made
        for norm in ("l2", "l1")
        for made in (
            case("cifar", norm, 3, 1024),
            case("mnist_rows", norm, 1, 784, PER_SAMPLE_EPS=True),
            case("nhwc_bf16", norm, 3, 1024, half, CHANNELS_LAST=True),
            case("imagenet", norm, 3, 50176),
            case("fp64", norm, 3, 1024, double, DTYPE=tl.float64),
        )
    ]
