"""The loss head: loss, dL/dlogits, prediction and slot state of a row of logits, in one launch."""

import functools

import triton
import triton.language as tl

from ..aot import AotCase, argument_types
from ..geometry import dtype_of_size, power_of_two
from ..launching import Variant
from ..rounding import divide
from .ranking import following, leading, load_chunk
from .slots import advance_slot

_DLR_GUARD = tl.constexpr(1e-12)  # AutoAttack's: z_pi1 = z_pi3 must not divide by zero
_RATIO_GUARD = tl.constexpr(1e-8)  # adversarial-library's

WHOLE_ROW = 8192  # classes that one block holds; DLR spills above it on sm_90
CHUNK = 2048  # classes a pass over a longer row takes at a time; 4096 spills on sm_100


@functools.cache
def head_geometry(classes, element_size):
    """(BLOCK, num_warps) for rows of `classes` logits; longer rows than BLOCK are looped over."""
    double = element_size == 8  # twice the registers an element; 4096 spill on sm_100
    block = max(16, power_of_two(classes))
    if block > (WHOLE_ROW >> 2 * double):
        return CHUNK >> double, 16 >> double
    return block, min(16, max(1, block // 256))


@triton.jit
def _softmax_sums(
    row_ptr, C, EXTENT, top, SMOOTH: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """sum_j exp(z_j - top), and sum_j (top - z_j) if SMOOTH."""
    total = tl.zeros([BLOCK], DTYPE)
    spread = tl.zeros([BLOCK], DTYPE)
    for start in range(0, EXTENT, BLOCK):
        column, z = load_chunk(row_ptr, start, C, DTYPE, BLOCK)
        total += tl.exp(z - top)
        if SMOOTH:
            spread += tl.where(column < C, top - z, 0.0)
    return tl.sum(total, 0), tl.sum(spread, 0)


@triton.jit
def _divergence_terms(z, q, top, log_total):
    """q * (log q - log softmax(z)), zero where q is zero."""
    absent = q == 0
    log_ratio = tl.log(tl.where(absent, 1.0, q)) - ((z - top) - log_total)
    return q * tl.where(absent, 0.0, log_ratio)


@triton.jit
def _load_class(class_ptr, C):
    """A label as int32 and whether it is one; -1, which no column equals, if it is not."""
    label = tl.load(class_ptr)
    valid = (label >= 0) & (label < C)
    return tl.where(valid, label, -1).to(tl.int32), valid


@triton.jit
def _load_classes(labels_ptr, targets_ptr, row, C, TARGETED: tl.constexpr):
    """(label, class that the loss is about, are both classes?)"""
    label, valid = _load_class(labels_ptr + row, C)
    own = label
    if TARGETED:
        own, target_valid = _load_class(targets_ptr + row, C)
        valid = valid & target_valid
    return label, own, valid


# Neither strides nor addresses may change the code, or the order of a sum would depend on where a
# batch starts in memory; rows of 10, 100 or 1,000 classes could not be read in 128 bits anyway.
@triton.jit(
    do_not_specialize=(
        "steps", "first_step", "best_from", "logits_stride", "grad_stride", "reference_stride"
    ),
    do_not_specialize_on_alignment=("logits_ptr", "reference_ptr", "grad_ptr"),
)  # fmt: skip
def loss_head_kernel(
    logits_ptr, labels_ptr, targets_ptr, reference_ptr, loss_ptr, grad_ptr, prediction_ptr,
    correct_ptr, slots_ptr, best_loss_ptr,
    parameter: "fp64", steps, first_step, best_from, C,  # noqa: F821
    logits_stride, grad_stride, reference_stride,
    KIND: tl.constexpr, TARGETED: tl.constexpr, SMOOTH: tl.constexpr, GRADIENT: tl.constexpr,
    SLOTTED: tl.constexpr, TRACK_BEST: tl.constexpr, STOP_EARLY: tl.constexpr,
    ANY_ERROR: tl.constexpr, LOOP: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row. Sparse losses are functions of gap = z_up - z_down, which the attack increases."""
    row = tl.program_id(0).to(tl.int64)
    logits_row = logits_ptr + row * logits_stride
    reference_row = reference_ptr + row * reference_stride if KIND == "kl" else logits_row
    EXTENT = C if LOOP else BLOCK
    if not LOOP:  # ahead of the reductions, which hide the latency of these loads
        label, own, valid = _load_classes(labels_ptr, targets_ptr, row, C, TARGETED)
        z_own = tl.load(logits_row + own, mask=valid, other=0.0).to(DTYPE)

    top, first = leading(logits_row, C, EXTENT, DTYPE, BLOCK)
    if KIND == "cross_entropy" or KIND == "kl":
        total, spread = _softmax_sums(logits_row, C, EXTENT, top, SMOOTH, DTYPE, BLOCK)
    if KIND == "margin" or KIND == "dlr" or KIND == "ratio":
        second_z, second = following(logits_row, C, EXTENT, top, first, DTYPE, BLOCK)
    if KIND == "dlr" or KIND == "ratio":
        third_z, third = following(logits_row, C, EXTENT, second_z, second, DTYPE, BLOCK)
        if TARGETED:
            fourth_z, fourth = following(logits_row, C, EXTENT, third_z, third, DTYPE, BLOCK)

    if LOOP:  # after them: held through the loops, these would spill
        label, own, valid = _load_classes(labels_ptr, targets_ptr, row, C, TARGETED)
        z_own = tl.load(logits_row + own, mask=valid, other=0.0).to(DTYPE)
    has_nan = first < 0
    prediction = tl.where(has_nan, first + C, first)
    usable = valid & (first >= 0)
    s = tl.full([], parameter, DTYPE)
    one = tl.full([], 1.0, DTYPE)
    gap = one
    if KIND == "cross_entropy":
        log_total = tl.log(total)
        scale = divide(one, total, DTYPE)
        classes = one * C
        loss = log_total + (top - z_own)
        if SMOOTH:
            loss = (1.0 - s) * loss + s * (log_total + divide(spread, classes, DTYPE))
        smooth = divide(s, classes, DTYPE)
        if TARGETED:
            loss = -loss
    elif KIND == "kl":
        log_total = tl.log(total)
        scale = divide(one, total, DTYPE)
    elif KIND != "none":
        if KIND != "difference":
            rival_z = tl.where(first == own, second_z, top)
            rival = tl.where(first == own, second, first)
        if TARGETED:
            up = own
            if KIND == "margin" or KIND == "ratio":
                down = rival
                gap = z_own - rival_z
            else:
                down = label
                gap = z_own - tl.load(logits_row + label, mask=valid, other=0.0).to(DTYPE)
        else:
            up = rival
            down = own
            gap = rival_z - z_own
        if KIND == "margin":
            loss = tl.where(gap > s, s, gap)
            slope = tl.where(gap <= s, one, 0.0)
        elif KIND == "dlr" or KIND == "ratio":
            if TARGETED:
                width = top - 0.5 * (third_z + fourth_z)
            else:
                width = top - third_z
            if KIND == "dlr":
                width += _DLR_GUARD
                loss = divide(gap, width, DTYPE)
            else:
                width += _RATIO_GUARD
                loss = divide(gap - s, width, DTYPE)
            slope = divide(one, width, DTYPE)
            bend = divide(loss, width, DTYPE)
            low_bend = 0.5 * bend if TARGETED else bend
        else:
            loss = gap
            slope = one

    if KIND == "kl" or (GRADIENT and KIND != "none"):
        divergence = tl.zeros([BLOCK], DTYPE)
        for start in range(0, EXTENT, BLOCK):
            column, z = load_chunk(logits_row, start, C, DTYPE, BLOCK)
            if KIND == "cross_entropy":
                g = tl.exp(z - top) * scale - (tl.where(column == own, 1.0 - s, 0.0) + smooth)
                if TARGETED:
                    g = -g
            elif KIND == "kl":
                q = tl.load(reference_row + column, mask=column < C, other=0.0).to(DTYPE)
                divergence += _divergence_terms(z, q, top, log_total)
                g = tl.exp(z - top) * scale - q
            else:
                g = tl.where(column == up, slope, 0.0) - tl.where(column == down, slope, 0.0)
                if KIND == "dlr" or KIND == "ratio":
                    g -= tl.where(column == first, bend, 0.0)
                    g += tl.where(column == third, low_bend, 0.0)
                    if TARGETED:
                        g += tl.where(column == fourth, low_bend, 0.0)
            if GRADIENT:
                g = tl.where(usable & (tl.abs(g) < float("inf")), g, 0.0)
                if grad_ptr.dtype.element_ty == tl.float16:
                    # DLR's 1 / 1e-12 on ties would be inf, and inf * 0 a NaN in the backward pass
                    g = tl.minimum(tl.maximum(g, -65504.0), 65504.0)
                g = g.to(grad_ptr.dtype.element_ty)
                tl.store(grad_ptr + row * grad_stride + column, g, mask=column < C)
        if KIND == "kl":
            loss = tl.sum(divergence, 0)
    if KIND == "none":
        loss = tl.load(loss_ptr + row).to(DTYPE)
    else:
        loss = tl.where(has_nan, float("nan"), tl.where(valid, loss, 0.0))

    tl.store(prediction_ptr + row, prediction.to(tl.int64))
    tl.store(correct_ptr + row, prediction == label)
    if SLOTTED:
        fooled = prediction == own if TARGETED and not ANY_ERROR else prediction != label
        fooled = fooled & usable
        if KIND == "margin":
            fooled = fooled & ((s <= 0) | (gap >= s))
        advance_slot(
            slots_ptr, loss_ptr, best_loss_ptr, row, loss, fooled,
            has_nan, valid, steps, first_step, best_from, KIND != "none", TRACK_BEST, STOP_EARLY,
        )  # fmt: skip
    elif KIND != "none":
        tl.store(loss_ptr + row, loss)


@functools.lru_cache(None, typed=True)  # 1 == True
def _variant(
    kind, targeted, smooth, gradient, slotted, tracks_best, stop_early, any_error, classes,
    element_size,
):  # fmt: skip
    """The kernel for such calls: eleven constants that are not put together at each of them."""
    block, warps = head_geometry(classes, element_size)
    return Variant(
        loss_head_kernel, warps, KIND=kind, TARGETED=targeted, SMOOTH=smooth, GRADIENT=gradient,
        SLOTTED=slotted, TRACK_BEST=tracks_best, STOP_EARLY=stop_early, ANY_ERROR=any_error,
        LOOP=classes > block, DTYPE=dtype_of_size(element_size), BLOCK=block,
    )  # fmt: skip


def launch_loss_head(
    logits, labels, targets, reference, loss, grad, prediction, correct, slot_state, best_loss,
    kind, parameter, steps, first_step, stop_early, best_from, any_error,
):  # fmt: skip
    """Launch one program a row over rows with unit column stride; one launch."""
    batch, classes = logits.shape
    tracks_best = slot_state is not None and best_loss is not None
    if batch == 0:
        return
    _variant(
        kind, targets is not None, kind == "cross_entropy" and parameter > 0.0, grad is not None,
        slot_state is not None, tracks_best, stop_early, any_error, classes, logits.element_size(),
    ).launch(
        batch,
        (logits, labels, targets, reference, loss, grad, prediction, correct, slot_state,
         best_loss if tracks_best else None, parameter, steps, first_step, best_from, classes,
         logits.stride()[0], 0 if grad is None else grad.stride()[0],
         0 if reference is None else reference.stride()[0]),
    )  # fmt: skip


def aot_cases():
    """Every kind at 10, 1,000 and 21,000 classes, as the engine calls it."""
    pointers = argument_types(loss_head_kernel, targets_ptr="*i64")
    double = {n: "*fp64" for n in ("logits_ptr", "loss_ptr", "grad_ptr", "best_loss_ptr")}
    half = {n: "*bf16" for n in ("logits_ptr", "grad_ptr")}
    fixed = (
        "logits_ptr", "reference_ptr", "grad_ptr", "steps", "first_step", "best_from", "C",
        "logits_stride", "grad_stride", "reference_stride",
    )  # fmt: skip
    heads = [
        ("ce", "cross_entropy", False), ("ce_targeted", "cross_entropy", True),
        ("margin", "margin", False), ("margin_targeted", "margin", True),
        ("dlr", "dlr", False), ("dlr_targeted", "dlr", True),
        ("difference", "difference", True), ("kl", "kl", False), ("none", "none", False),
        ("ratio", "ratio", True),
    ]  # fmt: skip
    rows = [(classes, "", {}, tl.float32) for classes in (10, 1000, WHOLE_ROW, 21000)]
    rows += [(21000, "_bf16", half, tl.float32)]
    rows += [(classes, "_fp64", double, tl.float64) for classes in (10, WHOLE_ROW // 4, 21000)]
    cases = []
    for classes, suffix, types, dtype in rows:
        block, warps = head_geometry(classes, 8 if dtype == tl.float64 else 4)
        for name, kind, targeted in heads:
            if kind == "ratio" and suffix + str(classes) not in ("10", "21000"):
                continue  # but for the guard it is DLR
            constants = dict(
                KIND=kind, TARGETED=targeted, SMOOTH=name == "ce", GRADIENT=True, SLOTTED=True,
                TRACK_BEST=True, STOP_EARLY=True, ANY_ERROR=False, LOOP=classes > block,
                DTYPE=dtype, BLOCK=block,
            )  # fmt: skip
            label = f"head_{name}_{classes}{suffix}"
            cases.append(
                AotCase(label, loss_head_kernel, pointers | types, constants, warps, fixed)
            )
    return cases
