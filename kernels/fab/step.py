"""FAB's step in one launch: verdict on the last point, two projections, the next point."""

import triton
import triton.language as tl

from ..aot import AotCase, argument_types
from ..geometry import LONG_ROW, ROW_BLOCK, compute_dtype, row_kernel
from ..launching import launch
from .projection import finite_or_zero, norm_of, norm_part, project_row
from .step_long import fab_step_long_kernel
from .verdict import is_active, judge_distance, load_verdict, mixed, mixing, store_verdict

ROW_LIMIT = ROW_BLOCK  # longer rows are read anew at each turn of a search


@triton.jit
def fab_step_kernel(
    x_adv_ptr, closest_ptr, grad_ptr, x_ptr, difference_ptr, prediction_ptr, labels_ptr,
    distance_ptr, pulled_ptr, slots_ptr, eps_ptr,
    lo: "fp64", hi: "fp64", alpha_max: "fp64", eta: "fp64", beta: "fp64",  # noqa: F821
    steps, D,
    NORM: tl.constexpr, STOP_EARLY: tl.constexpr, MOVES: tl.constexpr, DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One sample a program, its row in registers."""
    row = tl.program_id(0).to(tl.int64)
    base = row * D
    e = tl.arange(0, BLOCK)
    mask = e < D
    low = tl.full([], lo, DTYPE)
    high = tl.full([], hi, DTYPE)
    if is_active(slots_ptr, row):
        fooled, over, known, difference = load_verdict(
            slots_ptr, difference_ptr, prediction_ptr, labels_ptr, pulled_ptr, row, steps, DTYPE
        )
        stored = tl.load(x_adv_ptr + base + e, mask=mask, other=0.0)
        x_adv = stored.to(DTYPE)
        x = tl.load(x_ptr + base + e, mask=mask, other=0.0).to(DTYPE)
        if fooled:
            length = norm_of(norm_part(x_adv - x, NORM), NORM, DTYPE)
            closer, over = judge_distance(
                slots_ptr, distance_ptr, eps_ptr, row, length, over, STOP_EARLY, DTYPE
            )
            if closer:
                tl.store(closest_ptr + base + e, stored, mask=mask)
            if over == 0:
                pulled = x + tl.full([], beta, DTYPE) * (x_adv - x)
                tl.store(x_adv_ptr + base + e, pulled.to(x_adv_ptr.dtype.element_ty), mask=mask)
        elif MOVES:
            if over == 0:
                w = tl.load(grad_ptr + base + e, mask=mask, other=0.0).to(DTYPE)
                w = tl.where(known, finite_or_zero(w), 0.0)
                # w . x_adv - b is the difference itself: b would cancel most of it
                clean = difference - tl.sum(w * (x_adv - x), 0)
                clean = tl.where(clean == clean, clean, 0.0)
                d1 = project_row(x_adv, w, difference, low, high, NORM, DTYPE)
                d2 = project_row(x, w, clean, low, high, NORM, DTYPE)
                a1 = norm_of(norm_part(d1, NORM), NORM, DTYPE)
                a2 = norm_of(norm_part(d2, NORM), NORM, DTYPE)
                alpha = mixing(a1, a2, tl.full([], alpha_max, DTYPE), DTYPE)
                moved = mixed(x_adv, d1, x, d2, alpha, tl.full([], eta, DTYPE), low, high)
                tl.store(x_adv_ptr + base + e, moved.to(x_adv_ptr.dtype.element_ty), mask=mask)
        store_verdict(slots_ptr, pulled_ptr, row, fooled, over, known, MOVES)


def _kernel(size):
    return row_kernel(size, ROW_LIMIT, fab_step_kernel, (fab_step_long_kernel, LONG_ROW))


def launch_fab_step(
    x_adv, closest, grad, x, difference, prediction, labels, distance, pulled_back, slot_state,
    eps, lo, hi, norm, steps, stop_early, alpha_max, eta, beta,
):  # fmt: skip
    """One launch over dense rows that share a layout."""
    if x_adv.numel() == 0:
        return
    batch = x_adv.shape[0]
    size = x_adv.numel() // batch
    kernel, block, warps = _kernel(size)
    launch(
        kernel, batch,
        (x_adv, closest, grad, x, difference, prediction, labels, distance, pulled_back, slot_state,
         eps, lo, hi, alpha_max, eta, beta, steps, size),
        num_warps=warps, NORM=norm, STOP_EARLY=stop_early,
        MOVES=grad is not None, DTYPE=compute_dtype(x_adv), BLOCK=block,
    )  # fmt: skip


def aot_cases():
    """Every norm of an image's row and of a long one, half precision, and the longest on chip."""
    types = argument_types(fab_step_kernel)
    half = types | {n: "*bf16" for n in ("x_adv_ptr", "closest_ptr", "grad_ptr", "x_ptr")}

    def case(name, norm, size, signature=types, **demands):
        kernel, block, warps = _kernel(size)
        constants = dict(NORM=norm, STOP_EARLY=True, MOVES=True, DTYPE=tl.float32, BLOCK=block)
        return AotCase(name, kernel, signature, constants, warps, ("steps",), **demands)

    return [
        case("fab_linf", "linf", 3072, vectorised=True),
        case("fab_l2", "l2", 3072, vectorised=True),
        case("fab_l1", "l1", 3072, vectorised=True),
        case("fab_linf_mnist", "linf", 784, vectorised=True),
        case("fab_linf_bf16", "linf", 3072, half, vectorised=True),
        case("fab_linf_longest_row", "linf", ROW_LIMIT, vectorised=True),
        case("fab_linf_long", "linf", 150_528, vectorised=True),
        case("fab_l2_long", "l2", 150_528, vectorised=True),
        case("fab_l1_long", "l1", 150_528),
    ]
