"""One step of C&W in one launch: verdict on the last point, the constant, the next point."""

import triton
import triton.language as tl

from .. import slots
from ..aot import AotCase, argument_types
from ..fab.projection import finite_or_zero, joined, norm_of, norm_part
from ..geometry import LONG_ROW, ROW_BLOCK, compute_dtype, row_geometry
from ..launching import launch
from ..rounding import clamp_keeping_nan, divide, root
from .constants import next_constant
from .verdict import is_active, judge

COLUMNS = 9  # constant, low, high, last, level, point, number, found, pace
_COLUMNS = tl.constexpr(COLUMNS)
_STEP = tl.constexpr(slots.STEP)
_WIDTH = tl.constexpr(slots.WIDTH)
_MANY = tl.constexpr(2**30)
_INSIDE = tl.constexpr(1.0 - 1e-6)
_FIRST = tl.constexpr(0.9)
_SECOND = tl.constexpr(0.999)
_GUARD = tl.constexpr(1e-8)
_STALLED = tl.constexpr(0.9999)
_DONE = tl.constexpr(1e-4)


@triton.jit
def place(x, shift, lo, hi, share, rest, unit, DTYPE: tl.constexpr):
    """((tanh(w + shift) + 1) / 2 in the bounds, its slope by shift, over unit), w being x's."""
    above = (x - lo) * share + rest
    below = (hi - x) * share + rest
    factor = tl.exp(-2.0 * tl.abs(shift))
    above = tl.where(shift < 0, above * factor, above)
    below = tl.where(shift < 0, below, below * factor)
    whole = above + below
    part = divide(above, whole, DTYPE)
    return clamp_keeping_nan(lo + unit * part, lo, hi), 2.0 * part * divide(below, whole, DTYPE)


@triton.jit
def cw_step_kernel(
    x_adv_ptr, closest_ptr, grad_ptr, x_ptr, shift_ptr, mean_ptr, square_ptr, loss_ptr,
    prediction_ptr, aims_ptr, distance_ptr, search_ptr, slots_ptr, eps_ptr, schedule_ptr,
    lo: "fp64", hi: "fp64", unit: "fp64", kappa: "fp64", increase: "fp64",  # noqa: F821
    decrease: "fp64", most: "fp64", relative: "fp64",  # noqa: F821
    settled, rounds, points, steps, D,
    NORM: tl.constexpr, SQUASHED: tl.constexpr, RELATIVE: tl.constexpr, ABORT_EARLY: tl.constexpr,
    TARGETED: tl.constexpr, STOP_EARLY: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One sample a program: a pass over its row for the distance, one for the step."""
    row = tl.program_id(0).to(tl.int64)
    base = row * D
    offset = tl.arange(0, BLOCK)
    low = tl.full([], lo, DTYPE)
    high = tl.full([], hi, DTYPE)
    width = tl.full([], unit, DTYPE)
    inverse = tl.full([], 1.0 / unit, DTYPE)
    if is_active(slots_ptr, row):
        memory = search_ptr + row * _COLUMNS
        constant = tl.load(memory)
        last = tl.load(memory + 3)
        level = tl.load(memory + 4)
        point = tl.load(memory + 5)
        number = tl.load(memory + 6)
        found = tl.load(memory + 7) > 0
        pace = tl.load(memory + 8)
        parts = tl.zeros([BLOCK], DTYPE)
        excess = tl.zeros([BLOCK], DTYPE)
        for start in range(0, D, BLOCK):
            e = start + offset
            x_adv = tl.load(x_adv_ptr + base + e, mask=e < D, other=0.0).to(DTYPE)
            d = x_adv - tl.load(x_ptr + base + e, mask=e < D, other=0.0).to(DTYPE)
            parts = joined(parts, norm_part(d, NORM), NORM)
            if NORM == "linf":
                over = tl.maximum(tl.abs(d * inverse) - level, 0.0)
                excess += tl.where(e < D, over, 0.0)
        length = norm_of(parts, NORM, DTYPE)
        loss = tl.load(loss_ptr + row).to(DTYPE)
        least = tl.full([], kappa, DTYPE)
        hit = tl.load(prediction_ptr + row).to(tl.int64) == tl.load(aims_ptr + row).to(tl.int64)
        reached = loss >= least
        if TARGETED:
            fooled = reached & hit
        else:
            fooled = reached & (hit == 0)
        nearest = tl.load(distance_ptr + row)
        missing = constant * (least - tl.where(loss == loss, loss, 0.0))
        fresh = point < 0  # not
        if NORM == "l2":
            size = length * inverse
            value = size * size + missing
            late = point >= settled
            checks = late & (point.to(tl.int32) % ((steps + 9) // 10) == 0)
            aborts = checks & (value > last * _STALLED) & ABORT_EARLY
            last = tl.where(checks, value, last)
            found = found | (fooled & late)
        else:
            aborts = (tl.sum(excess, 0) + missing < constant * _DONE) & ABORT_EARLY
            fresh = aborts
            found = found | (fooled & (length < nearest))
        ends = aborts | (point + 1 >= steps)
        nearest = tl.where(fooled, tl.minimum(length, nearest), nearest) * inverse
        new_pace = pace
        if RELATIVE:
            shorter = tl.minimum(nearest * tl.full([], relative, DTYPE), 1.0)
            new_pace = tl.where(ends, shorter, pace)
        under = tl.load(memory + 1)
        above = tl.load(memory + 2)
        new_constant, under, above, new_level = next_constant(
            constant, under, above, level, nearest, number, ends, found, rounds,
            tl.full([], increase, DTYPE), tl.full([], decrease, DTYPE), NORM,
        )  # fmt: skip
        number = tl.where(ends, number + 1, number)
        over = ends & (number >= rounds)
        if NORM == "linf":
            over = over | (ends & (new_constant >= tl.full([], most, DTYPE)))
        over = over | (tl.load(slots_ptr + row * _WIDTH + _STEP) + 1 >= points)
        verdict = judge(
            slots_ptr, loss_ptr, prediction_ptr, aims_ptr, distance_ptr, eps_ptr, row, length,
            tl.where(over, 0, _MANY), TARGETED, STOP_EARLY, False, DTYPE, least=least,
        )  # fmt: skip
        closer = verdict[1]
        over = verdict[2]
        if closer:
            for start in range(0, D, BLOCK):
                e = start + offset
                stored = tl.load(x_adv_ptr + base + e, mask=e < D, other=0.0)
                tl.store(closest_ptr + base + e, stored, mask=e < D)
        if over == 0:
            turn = tl.where(fresh, 0, point.to(tl.int32))
            tl.store(memory, new_constant)
            tl.store(memory + 1, under)
            tl.store(memory + 2, above)
            tl.store(memory + 3, tl.where(ends, float("inf"), last))
            tl.store(memory + 4, new_level)
            tl.store(memory + 5, tl.where(ends, tl.where(fresh, 1.0, 0.0), point + 1))
            tl.store(memory + 6, number)
            tl.store(memory + 7, tl.where(found & (ends == 0), 1.0, 0.0).to(DTYPE))
            tl.store(memory + 8, new_pace)
            constant = tl.where(fresh, new_constant, constant) * width
            level = tl.where(fresh, new_level, level)
            rate = tl.load(schedule_ptr + turn) * tl.where(fresh, new_pace, pace)
            scale = tl.load(schedule_ptr + steps + turn)
            first = tl.full([], _FIRST, DTYPE)
            first_rest = tl.full([], 1.0 - _FIRST, DTYPE)
            second = tl.full([], _SECOND, DTYPE)
            second_rest = tl.full([], 1.0 - _SECOND, DTYPE)
            share = tl.full([], (1.0 / unit) * _INSIDE, DTYPE)
            rest = tl.full([], (1.0 - _INSIDE) / 2, DTYPE)
            for start in range(0, D, BLOCK):
                e = start + offset
                mask = e < D
                x_adv = tl.load(x_adv_ptr + base + e, mask=mask, other=0.0).to(DTYPE)
                x = tl.load(x_ptr + base + e, mask=mask, other=0.0).to(DTYPE)
                g = finite_or_zero(tl.load(grad_ptr + base + e, mask=mask, other=0.0).to(DTYPE))
                shift = tl.load(shift_ptr + base + e, mask=mask, other=0.0)
                mean = tl.load(mean_ptr + base + e, mask=mask, other=0.0)
                square = tl.load(square_ptr + base + e, mask=mask, other=1.0)
                d = (x_adv - x) * inverse
                if NORM == "l2":
                    pull = 2.0 * d
                else:
                    sign = tl.where(d > 0, 1.0, -1.0)
                    pull = tl.where(tl.abs(d) > level, sign, 0.0).to(DTYPE)
                slope = pull - constant * g
                if SQUASHED:
                    here = place(x, shift, low, high, share, rest, width, DTYPE)
                    slope *= here[1]
                mean = first * tl.where(fresh, 0.0, mean) + first_rest * slope
                square = second * tl.where(fresh, 0.0, square) + second_rest * (slope * slope)
                shift -= rate * divide(mean, root(square, DTYPE) * scale + _GUARD, DTYPE)
                if NORM == "l2":
                    shift = tl.where(ends, 0.0, shift)
                forgets = ends & (fresh == 0)
                mean = tl.where(forgets, 0.0, mean)
                square = tl.where(forgets, 0.0, square)
                if SQUASHED:
                    moved = place(x, shift, low, high, share, rest, width, DTYPE)[0]
                else:
                    moved = clamp_keeping_nan(x + width * shift, low, high)
                    shift = (moved - x) * inverse
                tl.store(shift_ptr + base + e, shift, mask=mask)
                tl.store(mean_ptr + base + e, mean, mask=mask)
                tl.store(square_ptr + base + e, square, mask=mask)
                tl.store(x_adv_ptr + base + e, moved.to(x_adv_ptr.dtype.element_ty), mask=mask)


def _geometry(size):
    return row_geometry(size, 2048) if size <= ROW_BLOCK else LONG_ROW


def launch_cw_step(
    x_adv, closest, grad, x, shift, mean, square, loss, prediction, aims, distance, search,
    slot_state, eps, schedule, lo, hi, unit, kappa, increase, decrease, most, relative,
    settled, rounds, points, norm, squashed, abort_early, targeted, stop_early,
):  # fmt: skip
    """One launch over dense rows that share a layout."""
    if x_adv.numel() == 0:
        return
    batch = x_adv.shape[0]
    size = x_adv.numel() // batch
    block, warps = _geometry(size)
    launch(
        cw_step_kernel, batch,
        (x_adv, closest, grad, x, shift, mean, square, loss, prediction, aims, distance, search,
         slot_state, eps, schedule, lo, hi, unit, kappa, increase, decrease, most, relative,
         settled, rounds, points, schedule.shape[1], size),
        num_warps=warps, NORM=norm, SQUASHED=squashed, RELATIVE=relative > 0,
        ABORT_EARLY=abort_early,
        TARGETED=targeted, STOP_EARLY=stop_early, DTYPE=compute_dtype(x_adv), BLOCK=block,
    )  # fmt: skip


def aot_cases():
    """Both norms and variables of an image's row; a long one in half precision."""
    types = argument_types(cw_step_kernel, aims_ptr="*i64")
    half = types | {n: "*bf16" for n in ("x_adv_ptr", "closest_ptr", "grad_ptr", "x_ptr")}

    def case(name, norm, squashed, size, signature=types, targeted=False):
        block, warps = _geometry(size)
        constants = dict(
            NORM=norm, SQUASHED=squashed, RELATIVE=not squashed, ABORT_EARLY=True,
            TARGETED=targeted, STOP_EARLY=not targeted, DTYPE=tl.float32, BLOCK=block,
        )  # fmt: skip
        unaligned = ("settled", "rounds", "points", "steps")
        return AotCase(name, cw_step_kernel, signature, constants, warps, unaligned, True)

    return [
        case("cw_l2", "l2", False, 3072),
        case("cw_l2_tanh", "l2", True, 3072, targeted=True),
        case("cw_linf_long", "linf", True, 150_528, half),
    ]
