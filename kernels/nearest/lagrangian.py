"""One step of ALMA in one launch: verdict on the last point, its multipliers, the next point."""

import triton
import triton.language as tl

from ..aot import AotCase, argument_types
from ..fab.projection import finite_or_zero
from ..geometry import LONG_ROW, ROW_BLOCK, compute_dtype, held_row_geometry
from ..launching import launch
from ..rounding import clamp_keeping_nan, divide, root
from .verdict import is_active, judge

# numbers of a slot: multiplier, penalty, ratio at the last check, first success, step size
MEMORY = 5
DOUBLINGS, HALVINGS = 60, 20  # of the step size that is looked for
_MEMORY = tl.constexpr(MEMORY)
_MOST = tl.constexpr(1e12)  # and the inverse of its root, the authors' bounds of the multiplier
_LEAST = tl.constexpr(1e-6)
_GUARD = tl.constexpr(1e-8)  # RMSProp's
_DOUBLINGS = tl.constexpr(DOUBLINGS)
_HALVINGS = tl.constexpr(HALVINGS)


@triton.jit
def slope_of_penalty(ratio, rho, mu, DTYPE: tl.constexpr):
    """P2'(ratio): mu (1 + 2 rho ratio) + (rho ratio)^2 / 2 from 0 on, mu / (1 - rho ratio)^2."""
    product = rho * ratio
    above = mu + 2.0 * mu * product + 0.5 * product * product
    below = 1.0 - tl.minimum(product, 0.0)
    return tl.where(ratio >= 0, above, divide(mu, below * below, DTYPE))


@triton.jit
def _reaches(
    x_ptr, grad_ptr, D, rate, slope, lo, hi, reach, DTYPE: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Whether x, moved by rate * slope * grad into bounds, is further away than `reach`."""
    squares = tl.zeros([BLOCK], DTYPE)
    for start in range(0, D, BLOCK):
        e = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + e, mask=e < D, other=0.0).to(DTYPE)
        g = finite_or_zero(tl.load(grad_ptr + e, mask=e < D, other=0.0).to(DTYPE))
        d = tl.where(e < D, clamp_keeping_nan(x + rate * (slope * g), lo, hi) - x, 0.0)
        squares += d * d
    return root(tl.sum(squares, 0), DTYPE) > reach


@triton.jit
def found_rate(
    x_ptr, grad_ptr, D, slope, lo, hi, reach, DTYPE: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """The step size of which a first step along the gradient has the length `reach`."""
    under = tl.full([], 0.0, DTYPE)
    over = tl.full([], 1.0, DTYPE)
    turn = 0
    while turn < _DOUBLINGS:
        beyond = _reaches(x_ptr, grad_ptr, D, over, slope, lo, hi, reach, DTYPE, BLOCK)
        under = tl.where(beyond, under, over)
        over = tl.where(beyond, over, over * 2.0)
        turn = tl.where(beyond, _DOUBLINGS, turn + 1)
    for _ in range(_HALVINGS):
        middle = (under + over) * 0.5
        beyond = _reaches(x_ptr, grad_ptr, D, middle, slope, lo, hi, reach, DTYPE, BLOCK)
        under = tl.where(beyond, under, middle)
        over = tl.where(beyond, middle, over)
    return (under + over) * 0.5


@triton.jit
def alma_step_kernel(
    x_adv_ptr, closest_ptr, grad_ptr, x_ptr, square_ptr, momentum_ptr, loss_ptr, prediction_ptr,
    aims_ptr, distance_ptr, memory_ptr, slots_ptr, eps_ptr,
    lo: "fp64", hi: "fp64", unit: "fp64", reach: "fp64", fall: "fp64", rms: "fp64",  # noqa: F821
    inertia: "fp64", smoothing: "fp64", improvement: "fp64", increase: "fp64",  # noqa: F821
    steps, check_steps, D,
    FINDS: tl.constexpr, TARGETED: tl.constexpr, STOP_EARLY: tl.constexpr, DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One sample a program: a pass over its row for the distance, one for the step."""
    row = tl.program_id(0).to(tl.int64)
    base = row * D
    offset = tl.arange(0, BLOCK)
    low = tl.full([], lo, DTYPE)
    high = tl.full([], hi, DTYPE)
    if is_active(slots_ptr, row):
        squares = tl.zeros([BLOCK], DTYPE)
        for start in range(0, D, BLOCK):
            e = start + offset
            x_adv = tl.load(x_adv_ptr + base + e, mask=e < D, other=0.0).to(DTYPE)
            d = x_adv - tl.load(x_ptr + base + e, mask=e < D, other=0.0).to(DTYPE)
            squares += d * d
        length = root(tl.sum(squares, 0), DTYPE)
        known_before = tl.load(distance_ptr + row) < float("inf")
        fooled, closer, over, step, loss, nearest = judge(
            slots_ptr, loss_ptr, prediction_ptr, aims_ptr, distance_ptr, eps_ptr, row, length,
            steps, TARGETED, STOP_EARLY, True, DTYPE,
        )  # fmt: skip
        if closer:
            for start in range(0, D, BLOCK):
                e = start + offset
                stored = tl.load(x_adv_ptr + base + e, mask=e < D, other=0.0)
                tl.store(closest_ptr + base + e, stored, mask=e < D)
        if over == 0:
            memory = memory_ptr + row * _MEMORY
            mu = tl.load(memory)
            rho = tl.load(memory + 1)
            previous = tl.load(memory + 2)
            found_at = tl.load(memory + 3)
            rate = tl.load(memory + 4)
            ratio = -loss
            first = step == 0
            checks = first | ((step + 1) % check_steps == 0)
            stalls = checks & (first == 0) & (known_before == 0)
            stalls = stalls & (ratio >= tl.full([], improvement, DTYPE) * previous)
            rho = tl.where(stalls, rho * tl.full([], increase, DTYPE), rho)
            slope = slope_of_penalty(ratio, rho, mu, DTYPE)
            risen = mu + tl.full([], smoothing, DTYPE) * (slope - mu)
            risen = tl.minimum(tl.maximum(risen, _LEAST), _MOST)
            mu = tl.where(first, mu, risen)
            now = tl.full([], 1.0, DTYPE) * step
            found_at = tl.where(fooled & (known_before == 0), now, found_at)
            tl.debug_barrier()  # every warp has read the memory before one thread writes it
            tl.store(memory, mu)
            tl.store(memory + 1, rho)
            tl.store(memory + 2, ratio, mask=checks)
            tl.store(memory + 3, found_at)
            slope = slope_of_penalty(ratio, rho, mu, DTYPE) * tl.full([], unit, DTYPE)
            if FINDS:
                if first:
                    rate = found_rate(
                        x_ptr + base, grad_ptr + base, D, slope * tl.full([], unit, DTYPE),
                        low, high, tl.full([], reach, DTYPE), DTYPE, BLOCK,
                    )  # fmt: skip
                    tl.store(memory + 4, rate)
            share = divide(tl.maximum(now - found_at, 0.0), steps - found_at, DTYPE)
            factor = rate * tl.exp(share * tl.full([], fall, DTYPE))
            factor *= tl.full([], unit, DTYPE)
            away = (length > 0) & (first == 0)
            inverse = tl.where(away, divide(1.0, tl.where(away, length, 1.0), DTYPE), 0.0)
            keep = tl.full([], rms, DTYPE)
            carry = tl.full([], inertia, DTYPE)
            for start in range(0, D, BLOCK):
                e = start + offset
                mask = e < D
                x_adv = tl.load(x_adv_ptr + base + e, mask=mask, other=0.0).to(DTYPE)
                x = tl.load(x_ptr + base + e, mask=mask, other=0.0).to(DTYPE)
                g = finite_or_zero(tl.load(grad_ptr + base + e, mask=mask, other=0.0).to(DTYPE))
                square = tl.load(square_ptr + base + e, mask=mask, other=1.0)
                momentum = tl.load(momentum_ptr + base + e, mask=mask, other=0.0)
                d = x_adv - x
                whole = d * inverse - slope * g
                square = keep * square + (1.0 - keep) * (whole * whole)
                momentum = carry * momentum + divide(whole, root(square, DTYPE) + _GUARD, DTYPE)
                tl.store(square_ptr + base + e, square, mask=mask)
                tl.store(momentum_ptr + base + e, momentum, mask=mask)
                moved = clamp_keeping_nan(x + (d - factor * momentum), low, high)
                tl.store(x_adv_ptr + base + e, moved.to(x_adv_ptr.dtype.element_ty), mask=mask)


def _geometry(size):
    return held_row_geometry(size, ROW_BLOCK) if size <= ROW_BLOCK else LONG_ROW


def launch_alma_step(
    x_adv, closest, grad, x, square, momentum, loss, prediction, aims, distance, memory,
    slot_state, eps, lo, hi, unit, reach, fall, rms, inertia, smoothing, improvement, increase,
    steps, check_steps, targeted, stop_early,
):  # fmt: skip
    """One launch over dense rows that share a layout."""
    if x_adv.numel() == 0:
        return
    batch = x_adv.shape[0]
    size = x_adv.numel() // batch
    block, warps = _geometry(size)
    launch(
        alma_step_kernel, batch,
        (x_adv, closest, grad, x, square, momentum, loss, prediction, aims, distance, memory,
         slot_state, eps, lo, hi, unit, reach, fall, rms, inertia, smoothing, improvement, increase,
         steps, check_steps, size),
        num_warps=warps, FINDS=reach > 0, TARGETED=targeted, STOP_EARLY=stop_early,
        DTYPE=compute_dtype(x_adv), BLOCK=block,
    )  # fmt: skip


def aot_cases():
    """An image's row, and a long one in half precision."""
    types = argument_types(alma_step_kernel, aims_ptr="*i64")
    half = types | {n: "*bf16" for n in ("x_adv_ptr", "closest_ptr", "grad_ptr", "x_ptr")}

    def case(name, size, signature, targeted):
        block, warps = _geometry(size)
        constants = dict(
            FINDS=targeted, TARGETED=targeted, STOP_EARLY=not targeted, DTYPE=tl.float32,
            BLOCK=block,
        )
        unaligned = ("steps", "check_steps")
        return AotCase(
            name, alma_step_kernel, signature, constants, warps, unaligned, vectorised=True
        )

    return [case("alma", 3072, types, False), case("alma_long_bf16", 150_528, half, True)]
