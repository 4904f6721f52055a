"""The Square Attack in L-infinity: accept a proposal, walk to the next that changes something."""

import triton
import triton.language as tl

from ..addressing import scalar_or_row
from ..aot import AotCase, argument_types
from ..geometry import compute_dtype, power_of_two
from ..launching import launch
from ..rounding import clamp_keeping_nan
from .accept import accept, is_active, schedule


@triton.jit
def window_element(e, geometry_ptr, C, H, W, CHANNELS_LAST: tl.constexpr):
    """(offset in the image, channel, inside) of elements e of the window at geometry_ptr."""
    top = tl.load(geometry_ptr)
    left = tl.load(geometry_ptr + 1)
    side = tl.load(geometry_ptr + 2)
    if CHANNELS_LAST:
        c = e % C
        column = e // C % side
        line = e // (C * side)
        offset = ((top + line) * W + left + column) * C + c
    else:
        column = e % side
        line = e // side % side
        c = e // (side * side)
        offset = (c * H + top + line) * W + left + column
    return offset, c, e < C * side * side


@triton.jit
def window_size(geometry_ptr, C):
    side = tl.load(geometry_ptr + 2)
    return C * side * side


@triton.jit
def copy_window(
    to_ptr, from_ptr, geometry_ptr, C, H, W, CHANNELS_LAST: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    for start in range(0, window_size(geometry_ptr, C), BLOCK):
        e = start + tl.arange(0, BLOCK)
        offset, _, inside = window_element(e, geometry_ptr, C, H, W, CHANNELS_LAST)
        tl.store(to_ptr + offset, tl.load(from_ptr + offset, mask=inside), mask=inside)


@triton.jit
def propose(
    new_ptr, best_ptr, x_ptr, geometry_ptr, signs_ptr, eps, lo, hi, C, H, W,
    CHANNELS_LAST: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the elements that the query changes, and return how many they are."""
    changes = tl.zeros([BLOCK], tl.int32)
    for start in range(0, window_size(geometry_ptr, C), BLOCK):
        e = start + tl.arange(0, BLOCK)
        offset, c, inside = window_element(e, geometry_ptr, C, H, W, CHANNELS_LAST)
        best = tl.load(best_ptr + offset, mask=inside, other=0.0).to(DTYPE)
        x = tl.load(x_ptr + offset, mask=inside, other=0.0).to(DTYPE)
        sign = tl.load(signs_ptr + c, mask=inside, other=0).to(DTYPE)
        moved = clamp_keeping_nan(best + 2.0 * eps * sign, x - eps, x + eps)
        stored = clamp_keeping_nan(moved, lo, hi).to(new_ptr.dtype.element_ty)
        differs = inside & (stored.to(DTYPE) != best)
        tl.store(new_ptr + offset, stored, mask=differs)
        changes += differs.to(tl.int32)
    return tl.sum(changes, 0)


@triton.jit
def square_linf_kernel(
    new_ptr, best_ptr, x_ptr, loss_ptr, prediction_ptr, labels_ptr, best_loss_ptr, queries_ptr,
    wasted_ptr, slots_ptr, restarts_ptr, geometry_ptr, signs_ptr, eps_rows_ptr,
    eps: "fp64", lo: "fp64", hi: "fp64", K, QUERIES, C, H, W,  # noqa: F821
    PER_SAMPLE_EPS: tl.constexpr, CHANNELS_LAST: tl.constexpr, DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One slot a program, so that its scalars do not race; barriers part the passes over windows.

    A row of new differs from best in its own window only: memory traffic is a few windows.
    """
    row = tl.program_id(0).to(tl.int64)
    if is_active(slots_ptr, row):
        taken, accepted, cursor, fooled = accept(
            loss_ptr, prediction_ptr, labels_ptr, best_loss_ptr, queries_ptr, wasted_ptr,
            slots_ptr, row, K, QUERIES,
        )  # fmt: skip
        D = (tl.full([], 1, tl.int64) * C) * H * W
        best = best_ptr + row * D
        x = x_ptr + row * D
        new = new_ptr + row * K * D
        first = tl.load(restarts_ptr + row).to(tl.int64) * QUERIES
        geometry = geometry_ptr + first * 3
        signs = signs_ptr + first * C
        radius = scalar_or_row(eps, eps_rows_ptr, row, PER_SAMPLE_EPS, DTYPE)
        low = tl.full([], lo, DTYPE)
        high = tl.full([], hi, DTYPE)
        if accepted >= 0:
            copy_window(
                best, new + taken * D, geometry + accepted * 3, C, H, W, CHANNELS_LAST, BLOCK
            )
        tl.debug_barrier()
        if fooled == 0:
            for k in range(0, K):
                query = tl.load(queries_ptr + row * K + k)
                if (query >= 0) & (query < QUERIES):
                    window = geometry + query * 3
                    copy_window(new + k * D, best, window, C, H, W, CHANNELS_LAST, BLOCK)
                if (accepted >= 0) & (k != taken):
                    tl.debug_barrier()  # other threads hold the pixels that both windows share
                    window = geometry + accepted * 3
                    copy_window(new + k * D, best, window, C, H, W, CHANNELS_LAST, BLOCK)
            tl.debug_barrier()
            found = tl.full([], 0, tl.int32)
            upcoming = QUERIES + tl.full([], 0, tl.int32)
            while (found < K) & (cursor < QUERIES):
                changes = propose(
                    new + found * D, best, x, geometry + cursor * 3,
                    signs + cursor.to(tl.int64) * C, radius, low, high, C, H, W, CHANNELS_LAST,
                    DTYPE, BLOCK,
                )  # fmt: skip
                if changes > 0:
                    tl.store(queries_ptr + row * K + found, cursor)
                    upcoming = tl.where(found == 0, cursor, upcoming)
                    found += 1
                cursor += 1
            for k in range(found, K):
                tl.store(queries_ptr + row * K + k, QUERIES)
            schedule(slots_ptr, row, upcoming, QUERIES)


def _geometry(size):
    """(BLOCK, num_warps): late windows hold about 1 / 160 of an image's elements.

    One element a thread: with more, fp64 takes a stack (sm_80); so do 512 threads (sm_90).
    """
    block = min(256, max(128, power_of_two(size // 16)))
    return block, block // 32


def launch_square_linf(
    x_new, x_best, x, loss, prediction, labels, best_loss, queries, wasted, slot_state, restarts,
    geometry, signs, eps, eps_rows, lo, hi, query_count, *, channels_last,
):  # fmt: skip
    """One launch over dense images that share a layout."""
    if x_best.numel() == 0:
        return
    batch, channels, height, width = x_best.shape
    block, warps = _geometry(channels * height * width)
    launch(
        square_linf_kernel, batch,
        (x_new, x_best, x, loss, prediction, labels, best_loss, queries, wasted, slot_state,
         restarts, geometry, signs, eps_rows, eps, lo, hi, queries.shape[1], query_count, channels,
         height, width),
        num_warps=warps, PER_SAMPLE_EPS=eps_rows is not None, CHANNELS_LAST=channels_last,
        DTYPE=compute_dtype(x_best), BLOCK=block,
    )  # fmt: skip


def aot_cases():
    """The specialisations whose machine code is checked."""
    integers = ("queries_ptr", "wasted_ptr", "restarts_ptr", "geometry_ptr")
    types = argument_types(square_linf_kernel, **dict.fromkeys(integers, "*i32"), signs_ptr="*i8")
    half = types | {n: "*bf16" for n in ("new_ptr", "best_ptr", "x_ptr")}
    double = types | {n: "*fp64" for n, t in types.items() if t == "*fp32"}
    sizes = ("K", "QUERIES", "C", "H", "W")
    plain = dict(PER_SAMPLE_EPS=False, CHANNELS_LAST=False, DTYPE=tl.float32)

    def case(name, signature, size, **more):
        block, warps = _geometry(size)
        constants = plain | more | dict(BLOCK=block)
        return AotCase(
            f"square_linf_{name}", square_linf_kernel, signature, constants, warps, unaligned=sizes
        )

    return [
        case("cifar", types, 3072),
        case("mnist", types, 784),
        case("nhwc_rows", types, 3072, CHANNELS_LAST=True, PER_SAMPLE_EPS=True),
        case("bf16", half, 3072),
        case("fp64", double, 3072, DTYPE=tl.float64),
        case("imagenet", types, 150528, PER_SAMPLE_EPS=True),
    ]
