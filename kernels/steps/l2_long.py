"""L2 steps of rows that do not fit on chip: partial sums over chunks, then the step."""

import triton
import triton.language as tl

from .. import slots
from ..addressing import (
    box_of,
    load_bounds,
    load_grad,
    load_unit,
    movable_grad,
    scalar_or_row,
    store_model_input,
)
from ..geometry import ROW_BLOCK
from ..rounding import divide, root
from .l2_projection import move_and_project_l2, step_factor, unit_scale
from .momentum import updated_momentum

_ACTIVE = tl.constexpr(slots.ACTIVE)
_WIDTH = tl.constexpr(slots.WIDTH)

CHUNK = ROW_BLOCK  # elements of one program
PARTS = 5  # partial sums of a chunk, rows of the workspace:
_ABS = tl.constexpr(0)  # |grad|, with momentum only
_SCALE = tl.constexpr(1)  # s = unit_scale(max|d|), d the gradient or the momentum
_SQUARE = tl.constexpr(2)  # (s * d)^2, inf if d holds an infinity
_INNER = tl.constexpr(3)  # (x_adv - x) * (s * d)
_DELTA = tl.constexpr(4)  # (x_adv - x)^2
_PARTS = tl.constexpr(PARTS)
_PARTIALS = tl.constexpr(128)  # partial sums of a row that are read at once


@triton.jit(do_not_specialize=["first"])
def l2_abs_kernel(
    grad_ptr, slots_ptr, box_ptr, std_ptr, workspace_ptr, D, INNER, first,
    SLOTTED: tl.constexpr, BOX: tl.constexpr, MODEL_INPUT: tl.constexpr, CROSS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Long rows with momentum, first launch: sum|grad| of one chunk of one row."""
    chunks = tl.cdiv(D, BLOCK)
    row = (first + tl.program_id(0) // chunks).to(tl.int64)
    chunk = tl.program_id(0) % chunks
    active = True
    if SLOTTED:
        active = tl.load(slots_ptr + row * _WIDTH + _ACTIVE) != 0
    if active:
        e = chunk * BLOCK + tl.arange(0, BLOCK)
        g = load_grad(
            grad_ptr + row * D, e, e < D, std_ptr, D, INNER, DTYPE, MODEL_INPUT, CROSS,
            CHANNELS_LAST,
        )  # fmt: skip
        if BOX:
            g = movable_grad(g, box_of(box_ptr, row, D, BOX), e, e < D, D, DTYPE)
        if BOX == 3:
            g *= load_unit(box_of(box_ptr, row, D, BOX), e, e < D, D, DTYPE)
        tl.store(workspace_ptr + (row * _PARTS + _ABS) * chunks + chunk, tl.sum(tl.abs(g), 0))


@triton.jit
def sum_of_partials(partials_ptr, chunks, DTYPE: tl.constexpr):
    total = tl.zeros([_PARTIALS], DTYPE)
    for start in range(0, chunks, _PARTIALS):
        chunk = start + tl.arange(0, _PARTIALS)
        total += tl.load(partials_ptr + chunk, mask=chunk < chunks, other=0.0)
    return tl.sum(total, 0)


@triton.jit(do_not_specialize=["first"])
def l2_partials_kernel(
    x_adv_ptr, grad_ptr, x_ptr, momentum_ptr, slots_ptr, box_ptr, std_ptr, workspace_ptr,
    decay: "fp64", D, INNER, first,  # noqa: F821
    MOMENTUM: tl.constexpr, SLOTTED: tl.constexpr, BOX: tl.constexpr, MODEL_INPUT: tl.constexpr,
    CROSS: tl.constexpr, CHANNELS_LAST: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Long rows: every sum that the norms of the gradient and of the moved delta need."""
    chunks = tl.cdiv(D, BLOCK)
    row = (first + tl.program_id(0) // chunks).to(tl.int64)
    chunk = tl.program_id(0) % chunks
    base = row * D
    e = chunk * BLOCK + tl.arange(0, BLOCK)
    mask = e < D
    parts = workspace_ptr + row * _PARTS * chunks
    active = True
    if SLOTTED:
        active = tl.load(slots_ptr + row * _WIDTH + _ACTIVE) != 0
    if active:
        d = load_grad(
            grad_ptr + base, e, mask, std_ptr, D, INNER, DTYPE, MODEL_INPUT, CROSS, CHANNELS_LAST
        )
        if BOX:
            d = movable_grad(d, box_of(box_ptr, row, D, BOX), e, mask, D, DTYPE)
        if BOX == 3:
            unit = load_unit(box_of(box_ptr, row, D, BOX), e, mask, D, DTYPE)
            d *= unit
        if MOMENTUM:
            d = updated_momentum(
                momentum_ptr + base, e, mask, d, sum_of_partials(parts, chunks, DTYPE), D,
                tl.full([], decay, DTYPE), DTYPE,
            )  # fmt: skip
        x_adv = tl.load(x_adv_ptr + base + e, mask=mask, other=0.0).to(DTYPE)
        delta = x_adv - tl.load(x_ptr + base + e, mask=mask, other=0.0).to(DTYPE)
        if BOX == 3:
            delta = divide(delta, unit, DTYPE)
        largest = tl.max(tl.abs(d), 0)
        scale = unit_scale(largest, DTYPE)
        finite = largest < float("inf")
        d = tl.where(finite, d * scale, 0.0)
        tl.store(parts + _SCALE * chunks + chunk, scale)
        square = tl.where(finite, tl.sum(d * d, 0), float("inf"))
        tl.store(parts + _SQUARE * chunks + chunk, square)
        tl.store(parts + _INNER * chunks + chunk, tl.sum(delta * d, 0))
        tl.store(parts + _DELTA * chunks + chunk, tl.sum(delta * delta, 0))


@triton.jit
def norms_from_partials(parts, chunks, step, guard, DTYPE: tl.constexpr):
    """(scale, factor, norm): the move is d * scale * factor, and norm = ||x_adv - x + move||_2.

    norm^2 = |delta|^2 + 2 factor <delta, d> + factor^2 |d|^2 spares a third launch. What cancels
    in it costs accuracy only where |delta| is well above eps.
    """
    smallest = tl.full([_PARTIALS], float("inf"), DTYPE)
    for start in range(0, chunks, _PARTIALS):
        chunk = start + tl.arange(0, _PARTIALS)
        mask = chunk < chunks
        scales = tl.load(parts + _SCALE * chunks + chunk, mask=mask, other=float("inf"))
        smallest = tl.minimum(smallest, scales)
    scale = tl.min(smallest, 0)
    square = tl.zeros([_PARTIALS], DTYPE)
    inner = tl.zeros([_PARTIALS], DTYPE)
    for start in range(0, chunks, _PARTIALS):
        chunk = start + tl.arange(0, _PARTIALS)
        mask = chunk < chunks
        scales = tl.load(parts + _SCALE * chunks + chunk, mask=mask, other=float("inf"))
        ratio = divide(scale, scales, DTYPE)  # a power of two up to 1: exact
        squares = tl.load(parts + _SQUARE * chunks + chunk, mask=mask, other=0.0)
        square += squares * ratio * ratio
        inner += tl.load(parts + _INNER * chunks + chunk, mask=mask, other=0.0) * ratio
    square = tl.sum(square, 0)
    factor = step_factor(step, root(square, DTYPE), guard * scale, DTYPE)
    finite = square < float("inf")
    scale = tl.where(finite, scale, 0.0)
    moved = 2.0 * factor * tl.sum(inner, 0) + factor * factor * tl.where(finite, square, 0.0)
    total = sum_of_partials(parts + _DELTA * chunks, chunks, DTYPE) + moved
    return scale, factor, root(tl.maximum(total, 0.0, propagate_nan=tl.PropagateNan.ALL), DTYPE)


@triton.jit(do_not_specialize=["first"])
def l2_apply_kernel(
    x_adv_ptr, grad_ptr, x_ptr, momentum_ptr, step_rows_ptr, eps_rows_ptr, slots_ptr, box_ptr,
    input_ptr, mean_ptr, std_ptr, workspace_ptr,
    step_size: "fp64", eps: "fp64", lo: "fp64", hi: "fp64",  # noqa: F821
    decay: "fp64", guard: "fp64", D, INNER, first,  # noqa: F821
    PER_SAMPLE_STEP: tl.constexpr, PER_SAMPLE_EPS: tl.constexpr, MOMENTUM: tl.constexpr,
    SLOTTED: tl.constexpr, BOX: tl.constexpr, MODEL_INPUT: tl.constexpr, CROSS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Long rows, last launch: add the row's partial sums in their order and move one chunk."""
    chunks = tl.cdiv(D, BLOCK)
    row = (first + tl.program_id(0) // chunks).to(tl.int64)
    base = row * D
    e = (tl.program_id(0) % chunks) * BLOCK + tl.arange(0, BLOCK)
    mask = e < D
    parts = workspace_ptr + row * _PARTS * chunks
    step = scalar_or_row(step_size, step_rows_ptr, row, PER_SAMPLE_STEP, DTYPE)
    radius = scalar_or_row(eps, eps_rows_ptr, row, PER_SAMPLE_EPS, DTYPE)
    active = True
    if SLOTTED:
        active = tl.load(slots_ptr + row * _WIDTH + _ACTIVE) != 0
    if active:
        scale, factor, norm = norms_from_partials(
            parts, chunks, step, tl.full([], guard, DTYPE), DTYPE
        )
        d = load_grad(
            grad_ptr + base, e, mask, std_ptr, D, INNER, DTYPE, MODEL_INPUT, CROSS, CHANNELS_LAST
        )
        if BOX:
            d = movable_grad(d, box_of(box_ptr, row, D, BOX), e, mask, D, DTYPE)
        if BOX == 3:
            unit = load_unit(box_of(box_ptr, row, D, BOX), e, mask, D, DTYPE)
            d *= unit
        if MOMENTUM:
            d = updated_momentum(
                momentum_ptr + base, e, mask, d, sum_of_partials(parts, chunks, DTYPE), D,
                tl.full([], decay, DTYPE), DTYPE,
            )  # fmt: skip
            tl.store(momentum_ptr + base + e, d.to(momentum_ptr.dtype.element_ty), mask=mask)
        x_adv = tl.load(x_adv_ptr + base + e, mask=mask, other=0.0).to(DTYPE)
        x = tl.load(x_ptr + base + e, mask=mask, other=0.0).to(DTYPE)
        move = tl.where(scale > 0, d, 0.0) * scale * factor
        if BOX == 3:
            move *= unit
        if BOX:  # anew: held from above they would take registers that there are not
            low, high = load_bounds(box_of(box_ptr, row, D, BOX), e, mask, D, DTYPE)
            moved = move_and_project_l2(x_adv, move, x, norm, radius, low, high, DTYPE)
        else:
            moved = move_and_project_l2(
                x_adv, move, x, norm, radius, tl.full([], lo, DTYPE), tl.full([], hi, DTYPE), DTYPE
            )
        stored = moved.to(x_adv_ptr.dtype.element_ty)
        tl.store(x_adv_ptr + base + e, stored, mask=mask)
        if MODEL_INPUT:
            store_model_input(
                input_ptr + base, stored.to(DTYPE), e, mask, mean_ptr, std_ptr, D, INNER,
                DTYPE, CROSS, CHANNELS_LAST,
            )  # fmt: skip
