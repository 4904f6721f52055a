"""What the compiled steps share: what they take, the momentum, the model's input."""

import math
from typing import Any

import numpy as np
import torch

from fastadv.kernels import box as planes
from fastadv.kernels import slots as slot_columns
from fastadv.ops import layout
from fastadv.ops.loop_math import total_of
from fastadv.ops.loops import Address, Count, Real, address, inner, loop, pointer
from fastadv.ops.steps import reference as step_reference
from fastadv.ops.steps.arguments import StepCall


def takes(call: StepCall) -> bool:
    """Not a momentum or a model input in another dtype than x_adv."""
    dtype = call.x_adv.dtype
    return all(one is None or one.dtype == dtype for one in (call.momentum, call.model_input))


def is_across(call: StepCall) -> bool:
    """Whether there is a model input in another layout, in which the gradient is then too."""
    return call.model_input is not None and call.model_input.stride() != call.x_adv.stride()


def of_pixels(call: StepCall) -> StepCall:
    """`call` with the gradient to x_adv, in its layout, where it is that to the model's input."""
    if call.model_input is None or call.std is None:
        return call
    grad = call.grad.detach() / layout.per_channel(call.std.detach(), call.x_adv)
    memory_format = layout.dense_format(call.x_adv) or torch.contiguous_format
    return call._replace(grad=layout.in_format(grad, memory_format))


def in_c_order(call: StepCall) -> StepCall:
    """`call`, or one of copies: sums over a sample run in the same order in every layout."""
    images = ("x_adv", "grad", "x", "momentum")
    given = {name: getattr(call, name) for name in images}
    return call._replace(**{k: v if v is None else v.contiguous() for k, v in given.items()})


def rows_of(x_adv: torch.Tensor) -> tuple[int, int]:
    """(samples, elements of each)."""
    rows = x_adv.shape[0]
    return rows, x_adv.numel() // max(rows, 1)


@inner
def cleaned(grad, j, box, box_at, size, count, in_units):
    """Of the gradient's element j: 0 for NaN and where the box holds it; in units, if asked."""
    value = grad[j]
    if value != value:
        value = type(value)(0.0)
    if count > 0:
        if box[box_at + planes.LOWER * size + j] >= box[box_at + planes.UPPER * size + j]:
            value = type(value)(0.0)
        if in_units and count > planes.UNIT:
            value *= box[box_at + planes.UNIT * size + j]
    return value


@loop
def _momentum(
    momentum_at: Address,
    grad_at: Address,
    scratch_at: Address,
    rows: Count,
    size: Count,
    decay: Real,
    slots_at: Address,
    box_at: Address,
    box_planes: Count,
    in_units: Count,
) -> None:
    momentum, grad, box = (
        pointer(momentum_at, decay),
        pointer(grad_at, decay),
        pointer(box_at, decay),
    )
    scratch, slots = pointer(scratch_at, decay), pointer(slots_at, np.int32)
    for row in range(rows):
        if slots_at != 0 and slots[row * slot_columns.WIDTH + slot_columns.ACTIVE] == 0:
            continue
        at = row * size
        to_box = (box_planes - 1) * at
        for j in range(size):
            value = cleaned(grad, at + j, box, to_box, size, box_planes, in_units != 0)
            scratch[j], scratch[size + j] = value, abs(value)
        mean = total_of(scratch, size, size) / type(decay)(size)
        for j in range(size):
            unit = scratch[j] / mean
            if unit != unit:
                unit = type(decay)(0.0)
            momentum[at + j] = decay * momentum[at + j] + unit


def update_momentum(call: StepCall, box: Any, *, in_units: bool) -> None:
    """m = decay * m + g / mean|g| of active rows, as the reference's."""
    call, given = in_c_order(call), call
    momentum: Any = call.momentum
    rows, size = rows_of(momentum)
    scratch = torch.empty(2 * size, dtype=momentum.dtype)
    _momentum[momentum.dtype](
        momentum.data_ptr(),
        call.grad.data_ptr(),
        scratch.data_ptr(),
        rows,
        size,
        call.decay,
        address(call.slots),
        address(box),
        planes.planes(box),
        in_units,
    )
    if given.momentum is not momentum:
        given.momentum.detach().copy_(momentum)  # type: ignore[union-attr]


@loop
def _model_input(
    model_input_at: Address,
    x_adv_at: Address,
    mean_at: Address,
    std_at: Address,
    rows: Count,
    pixels: Count,
    channels: Count,
    inner_extent: Count,
    zero: Real,
    slots_at: Address,
) -> None:
    model_input, x_adv = pointer(model_input_at, zero), pointer(x_adv_at, zero)
    mean, std = pointer(mean_at, zero), pointer(std_at, zero)
    slots = pointer(slots_at, np.int32)
    size = pixels * channels * inner_extent
    for row in range(rows):
        if slots_at != 0 and slots[row * slot_columns.WIDTH + slot_columns.ACTIVE] == 0:
            continue
        for block in range(pixels):
            at = row * size + block * channels * inner_extent
            for channel in range(channels):
                m, s = mean[channel], std[channel]
                start = at + channel * inner_extent
                for j in range(start, start + inner_extent):
                    model_input[j] = (x_adv[j] - m) / s


def write_model_input(call: StepCall) -> None:
    """(x_adv - mean) / std of active rows."""
    x_adv, model_input, mean, std = call.x_adv, call.model_input, call.mean, call.std
    assert model_input is not None and mean is not None and std is not None, "checked before"
    if is_across(call):
        step_reference.store(call, x_adv)
        return
    mean, std = (one.detach().to(x_adv.dtype).contiguous() for one in (mean, std))
    rows, size = rows_of(x_adv)
    channels, inner_extent = x_adv.shape[1], math.prod(x_adv.shape[2:])
    if layout.dense_format(x_adv) is not torch.contiguous_format:
        inner_extent = 1
    _model_input[x_adv.dtype](
        model_input.data_ptr(),
        x_adv.data_ptr(),
        mean.data_ptr(),
        std.data_ptr(),
        rows,
        size // max(channels * inner_extent, 1),
        channels,
        inner_extent,
        0.0,
        address(call.slots),
    )
