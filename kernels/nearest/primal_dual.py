"""One step of PDGD or PDPGD in one launch: verdict on the last point, weights, the next point."""

import triton
import triton.language as tl

from ..aot import AotCase, argument_types
from ..fab.projection import finite_or_zero, joined, norm_of
from ..geometry import LONG_ROW, ROW_BLOCK, compute_dtype, held_row_geometry, power_of_two
from ..launching import launch
from ..rounding import clamp_keeping_nan, divide, root
from ..steps.l1_projection import l1_kept, l1_search, l1_search_end, l1_search_start
from .proximal import after_turns, level_of, load_after_adam, settled, sigmoid
from .rules import length_part
from .verdict import is_active, judge

DUALS = 3  # numbers of a slot: the logarithm of the weights' ratio, and both weights
_DUALS = tl.constexpr(DUALS)
_FIRST = tl.constexpr(0.9)  # Adam's
_SECOND = tl.constexpr(0.999)
_GUARD = tl.constexpr(1e-8)


@triton.jit
def primal_dual_step_kernel(
    x_adv_ptr, closest_ptr, grad_ptr, x_ptr, mean_ptr, square_ptr, loss_ptr, prediction_ptr,
    aims_ptr, distance_ptr, duals_ptr, slots_ptr, eps_ptr, schedule_ptr,
    lo: "fp64", hi: "fp64", unit: "fp64", most: "fp64", smoothing: "fp64",  # noqa: F821
    change: "fp64",  # noqa: F821
    turns, steps, D,
    NORM: tl.constexpr, PULL: tl.constexpr, LANES: tl.constexpr, TARGETED: tl.constexpr,
    STOP_EARLY: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One sample a program; LANES: a power of two that holds all turns, 0 where there are none."""
    row = tl.program_id(0).to(tl.int64)
    here_ptr = x_adv_ptr + row * D
    clean_ptr = x_ptr + row * D
    row_mean_ptr = mean_ptr + row * D
    row_square_ptr = square_ptr + row * D
    offset = tl.arange(0, BLOCK)
    low = tl.full([], lo, DTYPE)
    high = tl.full([], hi, DTYPE)
    width = tl.full([], unit, DTYPE)
    zero = tl.full([], 0.0, DTYPE)
    if is_active(slots_ptr, row):
        parts = tl.zeros([BLOCK], DTYPE)
        for start in range(0, D, BLOCK):
            e = start + offset
            x_adv = tl.load(here_ptr + e, mask=e < D, other=0.0).to(DTYPE)
            d = x_adv - tl.load(clean_ptr + e, mask=e < D, other=0.0).to(DTYPE)
            parts = joined(parts, length_part(d, NORM), NORM)
        length = norm_of(parts, NORM, DTYPE)
        fooled, closer, over, step, loss, nearest = judge(
            slots_ptr, loss_ptr, prediction_ptr, aims_ptr, distance_ptr, eps_ptr, row, length,
            steps, TARGETED, STOP_EARLY, False, DTYPE,
        )  # fmt: skip
        if closer:
            for start in range(0, D, BLOCK):
                e = start + offset
                stored = tl.load(here_ptr + e, mask=e < D, other=0.0)
                tl.store(closest_ptr + row * D + e, stored, mask=e < D)
        if over == 0:
            duals = duals_ptr + row * _DUALS
            log = tl.load(duals)
            of_distance = tl.load(duals + 1)
            of_loss = tl.load(duals + 2)
            factor = tl.load(schedule_ptr + step) * width
            inverse = tl.load(schedule_ptr + steps + step)
            size = tl.load(schedule_ptr + 2 * steps + step)
            dual_size = tl.load(schedule_ptr + 3 * steps + step)
            rise = tl.where(loss < 0, dual_size, tl.where(loss > 0, -dual_size, 0.0))
            limit = tl.full([], most, DTYPE)
            log = tl.minimum(tl.maximum(log + rise, -limit), limit)
            share = tl.full([], smoothing, DTYPE)
            tl.debug_barrier()  # every warp has read the weights before one thread writes them
            tl.store(duals, log)
            tl.store(duals + 1, of_distance + share * (sigmoid(-log, DTYPE) - of_distance))
            tl.store(duals + 2, of_loss + share * (sigmoid(log, DTYPE) - of_loss))

            weight = sigmoid(-loss, DTYPE) * width
            pull = zero
            if LANES == 0:
                weight = of_loss * weight
                away = length > 0
                pull = of_distance * divide(1.0, tl.where(away, length, 1.0), DTYPE)
                pull = tl.where(away, pull, 0.0)
            rest = tl.full([], 1.0 - _FIRST, DTYPE)
            keep = tl.full([], _SECOND, DTYPE)
            fresh = tl.full([], 1.0 - _SECOND, DTYPE)
            widths = tl.zeros([BLOCK], DTYPE)
            for start in range(0, D, BLOCK):
                e = start + offset
                mask = e < D
                g = finite_or_zero(tl.load(grad_ptr + row * D + e, mask=mask, other=0.0).to(DTYPE))
                mean = tl.load(row_mean_ptr + e, mask=mask, other=0.0)
                square = tl.load(row_square_ptr + e, mask=mask, other=0.0)
                whole = -weight * g
                if LANES == 0:
                    x_adv = tl.load(here_ptr + e, mask=mask, other=0.0).to(DTYPE)
                    x = tl.load(clean_ptr + e, mask=mask, other=0.0).to(DTYPE)
                    whole += (x_adv - x) * pull
                mean += rest * (whole - mean)
                square = keep * square + fresh * (whole * whole)
                tl.store(row_mean_ptr + e, mean, mask=mask)
                tl.store(row_square_ptr + e, square, mask=mask)
                widths = tl.maximum(widths, root(square, DTYPE) * inverse + _GUARD)
            tl.debug_barrier()  # the passes that follow read what this one wrote
            widest = tl.max(widths, 0)

            done = 0
            levels = zero
            if LANES > 0:
                level = divide(of_distance, of_loss, DTYPE) * divide(size, widest, DTYPE)
                if PULL == "l0":
                    levels = width * root(2.0 * level, DTYPE)
                elif PULL == "l1":
                    levels = width * level
                elif PULL == "l2/3":
                    levels = root(level, DTYPE)
                    levels *= root(levels, DTYPE) * width
                else:
                    level *= width
                    levels = tl.zeros([LANES], DTYPE)
                goes_on = turns > 0
                while goes_on:
                    if PULL == "l2":
                        squares = tl.zeros([BLOCK], DTYPE)
                        for start in range(0, D, BLOCK):
                            e = start + offset
                            x, d, h = load_after_adam(
                                here_ptr, clean_ptr, row_mean_ptr, row_square_ptr, e, D, factor,
                                inverse, low, high, DTYPE,
                            )  # fmt: skip
                            h = divide(h, widest, DTYPE)
                            z = after_turns(d, h, x, levels, done, low, high, PULL, LANES, DTYPE)
                            v = tl.where(e < D, z - h * (z - d), 0.0)
                            squares += v * v
                        norm = root(tl.sum(squares, 0), DTYPE)
                        longer = norm > level
                        left = 1.0 - divide(level, tl.where(longer, norm, 1.0), DTYPE)
                        found = tl.where(longer, left, 0.0)
                        levels = tl.where(tl.arange(0, LANES) == done, found, levels)
                    elif PULL == "linf":
                        guess, under, above, mass, slope, turn = l1_search_start(DTYPE)
                        while guess >= 0:
                            kept_sum = tl.zeros([BLOCK], DTYPE)
                            falling_sum = tl.zeros([BLOCK], DTYPE)
                            for start in range(0, D, BLOCK):
                                e = start + offset
                                x, d, h = load_after_adam(
                                    here_ptr, clean_ptr, row_mean_ptr, row_square_ptr, e, D,
                                    factor, inverse, low, high, DTYPE,
                                )  # fmt: skip
                                h = divide(h, widest, DTYPE)
                                z = after_turns(
                                    d, h, x, levels, done, low, high, PULL, LANES, DTYPE
                                )
                                v = tl.where(e < D, z - h * (z - d), 0.0)
                                kept, falling = l1_kept(
                                    tl.abs(v), float("inf"), guess.to(DTYPE, bitcast=True)
                                )
                                kept_sum += kept
                                falling_sum += falling
                            guess, under, above, mass, slope, turn = l1_search(
                                guess, under, above, mass, slope, turn, tl.sum(kept_sum, 0),
                                tl.sum(falling_sum, 0), level, DTYPE,
                            )  # fmt: skip
                        t, correction, outside = l1_search_end(
                            under, above, mass, slope, level, DTYPE
                        )
                        found = t + correction
                        levels = tl.where(tl.arange(0, LANES) == done, found, levels)
                    changes = tl.zeros([BLOCK], DTYPE)
                    squares = tl.zeros([BLOCK], DTYPE)
                    last = level_of(levels, done, PULL, LANES)
                    for start in range(0, D, BLOCK):
                        e = start + offset
                        x, d, h = load_after_adam(
                            here_ptr, clean_ptr, row_mean_ptr, row_square_ptr, e, D, factor,
                            inverse, low, high, DTYPE,
                        )  # fmt: skip
                        h = divide(h, widest, DTYPE)
                        before = after_turns(d, h, x, levels, done, low, high, PULL, LANES, DTYPE)
                        z = settled(before, d, h, x, last, low, high, PULL, DTYPE)
                        changes += tl.where(e < D, (z - before) * (z - before), 0.0)
                        squares += tl.where(e < D, z * z, 0.0)
                    done += 1
                    changed = root(tl.sum(changes, 0), DTYPE)
                    whole_length = root(tl.sum(squares, 0), DTYPE)
                    goes_on = changed > tl.full([], change, DTYPE) * whole_length
                    goes_on = goes_on & (done < turns)
            for start in range(0, D, BLOCK):
                e = start + offset
                x, z, h = load_after_adam(
                    here_ptr, clean_ptr, row_mean_ptr, row_square_ptr, e, D, factor, inverse, low,
                    high, DTYPE,
                )  # fmt: skip
                if LANES > 0:
                    h = divide(h, widest, DTYPE)
                    z = after_turns(z, h, x, levels, done, low, high, PULL, LANES, DTYPE)
                clean = tl.load(clean_ptr + e, mask=e < D, other=0.0)
                moved = clamp_keeping_nan(x + z, low, high)
                moved = tl.where(z != 0, moved.to(clean.dtype), clean)  # the bits of x
                tl.store(here_ptr + e, moved, mask=e < D)


def _geometry(size):
    return held_row_geometry(size, ROW_BLOCK) if size <= ROW_BLOCK else LONG_ROW


def launch_primal_dual_step(
    x_adv, closest, grad, x, mean, square, loss, prediction, aims, distance, duals, slot_state,
    eps, schedule, lo, hi, unit, most, smoothing, change, turns, norm, pull, targeted, stop_early,
):  # fmt: skip
    """One launch over dense rows that share a layout."""
    if x_adv.numel() == 0:
        return
    batch = x_adv.shape[0]
    size = x_adv.numel() // batch
    block, warps = _geometry(size)
    launch(
        primal_dual_step_kernel, batch,
        (x_adv, closest, grad, x, mean, square, loss, prediction, aims, distance, duals,
         slot_state, eps, schedule, lo, hi, unit, most, smoothing, change, turns,
         schedule.shape[1], size),
        num_warps=warps, NORM=norm, PULL=pull, LANES=power_of_two(turns) if turns else 0,
        TARGETED=targeted, STOP_EARLY=stop_early, DTYPE=compute_dtype(x_adv), BLOCK=block,
    )  # fmt: skip


def aot_cases():
    """PDPGD in each norm of an image's row, PDGD, and long rows."""
    types = argument_types(primal_dual_step_kernel, aims_ptr="*i64")
    half = types | {n: "*bf16" for n in ("x_adv_ptr", "closest_ptr", "grad_ptr", "x_ptr")}

    def case(name, norm, lanes, size, signature=types, targeted=False, pull=None):
        block, warps = _geometry(size)
        constants = dict(
            NORM=norm, PULL=pull or norm, LANES=lanes, TARGETED=targeted, STOP_EARLY=not targeted,
            DTYPE=tl.float32, BLOCK=block,
        )
        unaligned = ("turns", "steps")
        return AotCase(
            name, primal_dual_step_kernel, signature, constants, warps, unaligned, vectorised=True
        )

    return [
        case("pdgd", "l2", 0, 3072, targeted=True),
        case("pdpgd_l1", "l1", 8, 3072),
        case("pdpgd_l0", "l0", 8, 784, targeted=True),
        case("pdpgd_l0_l2/3", "l0", 8, 3072, pull="l2/3"),
        case("pdpgd_linf", "linf", 8, 3072),
        case("pdpgd_l2_long_bf16", "l2", 8, 150_528, half),
        case("pdpgd_linf_long", "linf", 8, 150_528),
    ]
