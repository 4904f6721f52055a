"""L2 steps: ascent along grad / ||grad||_2, projection onto the eps-ball, then the pixel clamp."""

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
from ..aot import AotCase, argument_types
from ..box import planes
from ..geometry import blocks, compute_dtype, held_row_geometry, row_geometry
from ..launching import launch
from ..rounding import divide, root
from .l2_long import CHUNK, PARTS, l2_abs_kernel, l2_apply_kernel, l2_partials_kernel
from .l2_projection import move_and_project_l2, step_factor, unit_scale
from .momentum import updated_momentum

_ACTIVE = tl.constexpr(slots.ACTIVE)
_WIDTH = tl.constexpr(slots.WIDTH)

# bytes that long rows of one group hold in what is read twice: the L2 caches of an A100 and of an
# H200 have 40 and 50 MB, in two halves
CACHED = 24 * 2**20
ROW_LIMIT = 8192  # the longest row of the one-launch kernel: 16384 spills
BOX_ROW_LIMIT = 4096  # and with a box: 8192 spills


@triton.jit
def l2_step_kernel(
    x_adv_ptr, grad_ptr, x_ptr, momentum_ptr, step_rows_ptr, eps_rows_ptr, slots_ptr, box_ptr,
    input_ptr, mean_ptr, std_ptr,
    step_size: "fp64", eps: "fp64", lo: "fp64", hi: "fp64",  # noqa: F821
    decay: "fp64", guard: "fp64", D, INNER,  # noqa: F821
    PER_SAMPLE_STEP: tl.constexpr, PER_SAMPLE_EPS: tl.constexpr, MOMENTUM: tl.constexpr,
    SLOTTED: tl.constexpr, BOX: tl.constexpr, MODEL_INPUT: tl.constexpr, CROSS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One sample a program, its row in registers: every tensor is read once."""
    row = tl.program_id(0).to(tl.int64)
    base = row * D
    e = tl.arange(0, BLOCK)
    mask = e < D
    step = scalar_or_row(step_size, step_rows_ptr, row, PER_SAMPLE_STEP, DTYPE)
    radius = scalar_or_row(eps, eps_rows_ptr, row, PER_SAMPLE_EPS, DTYPE)
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
                momentum_ptr + base, e, mask, d, tl.sum(tl.abs(d), 0), D,
                tl.full([], decay, DTYPE), DTYPE,
            )  # fmt: skip
            tl.store(momentum_ptr + base + e, d.to(momentum_ptr.dtype.element_ty), mask=mask)
        x_adv = tl.load(x_adv_ptr + base + e, mask=mask, other=0.0).to(DTYPE)
        x = tl.load(x_ptr + base + e, mask=mask, other=0.0).to(DTYPE)
        largest = tl.max(tl.abs(d), 0)
        scale = unit_scale(largest, DTYPE)
        d = tl.where(largest < float("inf"), d * scale, 0.0)
        norm = root(tl.sum(d * d, 0), DTYPE)
        move = d * step_factor(step, norm, tl.full([], guard, DTYPE) * scale, DTYPE)
        if BOX == 3:
            move *= unit
        u = x_adv - x + move
        if BOX == 3:
            u = divide(u, unit, DTYPE)
        norm = root(tl.sum(u * u, 0), DTYPE)
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


def _geometry(size):
    return held_row_geometry(size, ROW_LIMIT)


def _chunk_geometry(box):
    block, warps = row_geometry(CHUNK, CHUNK)
    return block, 2 * warps if box else warps  # with 8, boxes take 176 registers


def workspace_shape(batch, size, box):
    """Shape of the partial sums that a launch needs, in the compute dtype; None for short rows."""
    if size <= (ROW_LIMIT if box is None else BOX_ROW_LIMIT):
        return None
    return batch, PARTS, -(-size // CHUNK)


def launch_l2_step(
    x_adv, grad, x, step_size, step_rows, eps, eps_rows, lo, hi, slot_state, momentum, decay,
    model_input, mean, std, box, guard, *, workspace, inner, cross, channels_last,
):  # fmt: skip
    """One launch for rows up to ROW_LIMIT, with a box BOX_ROW_LIMIT; two for longer ones, three
    with momentum, of as many rows at a time as stay in cache: the last launch reads anew what the
    first ones have read."""
    if x_adv.numel() == 0:
        return
    batch = x_adv.shape[0]
    size = x_adv.numel() // batch
    layout = dict(
        SLOTTED=slot_state is not None, BOX=planes(box), MODEL_INPUT=model_input is not None,
        CROSS=cross, CHANNELS_LAST=channels_last, DTYPE=compute_dtype(x_adv),
    )  # fmt: skip
    momentum_too = dict(MOMENTUM=momentum is not None, **layout)
    rows = dict(PER_SAMPLE_STEP=step_rows is not None, PER_SAMPLE_EPS=eps_rows is not None)
    pointers = (
        x_adv, grad, x, momentum, step_rows, eps_rows, slot_state, box, model_input, mean, std
    )  # fmt: skip
    scalars = (step_size, eps, lo, hi, decay, guard, size, inner)
    if workspace is None:
        block, warps = _geometry(size)
        launch(
            l2_step_kernel, batch, (*pointers, *scalars),
            num_warps=warps, **rows, **momentum_too, BLOCK=block,
        )  # fmt: skip
        return
    block, warps = _chunk_geometry(planes(box))
    read_twice = (x_adv, grad, x) if momentum is None else (x_adv, grad, x, momentum)
    rows_at_once = max(1, CACHED // (size * sum(t.element_size() for t in read_twice)))
    for first in range(0, batch, rows_at_once):
        programs = min(rows_at_once, batch - first) * blocks(size, block)
        if momentum is not None:
            launch(
                l2_abs_kernel, programs,
                (grad, slot_state, box, std, workspace, size, inner, first),
                num_warps=warps, **layout, BLOCK=block,
            )  # fmt: skip
        launch(
            l2_partials_kernel, programs,
            (x_adv, grad, x, momentum, slot_state, box, std, workspace, decay, size, inner, first),
            num_warps=warps, **momentum_too, BLOCK=block,
        )  # fmt: skip
        launch(
            l2_apply_kernel, programs, (*pointers, workspace, *scalars, first),
            num_warps=warps, **rows, **momentum_too, BLOCK=block,
        )  # fmt: skip


def aot_cases():
    """The specialisations whose machine code is checked."""
    types = argument_types(l2_apply_kernel)  # has every argument of the others
    half = types | {n: "*bf16" for n in ("x_adv_ptr", "grad_ptr", "x_ptr")}
    plain = dict(
        PER_SAMPLE_STEP=False, PER_SAMPLE_EPS=False, SLOTTED=False, MOMENTUM=False,
        BOX=0, MODEL_INPUT=False, CROSS=False, CHANNELS_LAST=False, DTYPE=tl.float32,
    )  # fmt: skip
    engine = plain | dict(PER_SAMPLE_STEP=True, PER_SAMPLE_EPS=True, SLOTTED=True)
    momentum, both = dict(MOMENTUM=True), dict(MOMENTUM=True, MODEL_INPUT=True, CROSS=True)

    row, partials, apply = l2_step_kernel, l2_partials_kernel, l2_apply_kernel

    def case(name, kernel, signature, constants, size, **demands):
        box = constants["BOX"]
        block, warps = _geometry(size) if kernel is row else _chunk_geometry(box)
        constants = {k: v for k, v in constants.items() if k in kernel.arg_names}
        if kernel is not row:
            demands["unaligned"] = ("first",)
        return AotCase(name, kernel, signature, constants | dict(BLOCK=block), warps, **demands)

    return [
        case("l2", row, types, plain, 3072, vectorised=True),
        case("l2_slots", row, types, engine, 3072, vectorised=True),
        case("l2_bf16", row, half, plain, 3072, vectorised=True),
        case("l2_box_units", row, types, engine | both | dict(BOX=3), BOX_ROW_LIMIT),
        case("l2_unaligned", row, types, plain, 3072, unaligned=("D",)),
        case("l2_input", row, types, engine | dict(MODEL_INPUT=True), 3072),
        case("l2_momentum_input_cross", row, types, engine | both, 3072),
        case("l2_longest_row", row, types, engine | momentum, ROW_LIMIT, vectorised=True),
        case("l2_longest_row_input_cross", row, types, engine | both, ROW_LIMIT),
        case("l2_long_abs", l2_abs_kernel, types, engine, CHUNK),
        case("l2_long_apply_box", apply, types, engine | both | dict(BOX=3), CHUNK),
        case("l2_long_partials", partials, types, engine, CHUNK),
        case("l2_long_partials_momentum", partials, types, engine | both, CHUNK),
        case("l2_long_apply", apply, types, engine, CHUNK, vectorised=True),
        case("l2_long_apply_momentum", apply, types, engine | both, CHUNK),
    ]
