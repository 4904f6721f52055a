"""The L-infinity Square step as a compiled loop, the bits of the reference: a slot is judged, its
windows restored and its next proposals made before another one begins."""

from typing import Any

import numpy as np
import torch

from fastadv.kernels import slots as columns
from fastadv.ops.loops import Address, Count, Real, address, inner, loop, pointer


@inner
def _copy(target, to, source, of, geometry, channels, width, pixel, channel):
    """A window of the row that begins at `of` into the one that begins at `to`. geometry: of the
    window, at its first number; pixel, channel: strides of neighbours."""
    corner = (geometry[0] * width + geometry[1]) * pixel
    side = geometry[2]
    for c in range(channels):
        for i in range(side):
            at = corner + c * channel + i * width * pixel
            for j in range(side):
                target[to + at + j * pixel] = source[of + at + j * pixel]


@inner
def _propose(new, to, best, x, of, geometry, signs, channels, width, pixel, channel, eps, lo, hi):
    """Write a query's proposal into its window of a row; whether it differs from the best one."""
    corner = (geometry[0] * width + geometry[1]) * pixel
    side = geometry[2]
    differs = False
    for c in range(channels):
        step = type(eps)(2) * eps * type(eps)(signs[c])
        for i in range(side):
            at = corner + c * channel + i * width * pixel
            for j in range(at, at + side * pixel, pixel):
                was = best[of + j]
                low, high = x[of + j] - eps, x[of + j] + eps
                moved = was + step
                # a NaN of either, as torch.max and torch.min keep it
                moved = moved if (moved > low) | (moved != moved) else low
                moved = moved if (moved < high) | (moved != moved) else high
                moved = lo if moved < lo else moved
                moved = hi if moved > hi else moved
                new[to + j] = moved
                differs |= moved != was
    return differs


@loop
def _step(
    new_at: Address,
    best_at: Address,
    x_at: Address,
    loss_at: Address,
    prediction_at: Address,
    labels_at: Address,
    best_loss_at: Address,
    queries_at: Address,
    wasted_at: Address,
    slots_at: Address,
    restarts_at: Address,
    geometry_at: Address,
    signs_at: Address,
    batch: Count,
    ahead: Count,
    channels: Count,
    plane: Count,
    width: Count,
    pixel: Count,
    channel: Count,
    eps: Real,
    eps_rows: Address,
    lo: Real,
    hi: Real,
    count: Count,
) -> None:
    new, best, x = pointer(new_at, eps), pointer(best_at, eps), pointer(x_at, eps)
    loss, best_loss, radii = (
        pointer(loss_at, eps),
        pointer(best_loss_at, eps),
        pointer(eps_rows, eps),
    )
    prediction, labels = pointer(prediction_at, np.int64), pointer(labels_at, np.int64)
    queries, wasted = pointer(queries_at, np.int32), pointer(wasted_at, np.int32)
    slots, restarts = pointer(slots_at, np.int32), pointer(restarts_at, np.int32)
    size = channels * plane
    for b in range(batch):
        state, row = b * columns.WIDTH, b * ahead
        if slots[state + columns.ACTIVE] == 0:
            continue
        taken, last, fooled = -1, -2, False
        for k in range(row, row + ahead):
            if queries[k] >= count:
                continue
            if taken >= 0:
                wasted[b] += 1
                continue
            last = max(last, queries[k])
            if loss[k] != loss[k]:
                slots[state + columns.FAULT] |= columns.FAULT_NAN_LOGITS
                continue
            fooled = prediction[k] != labels[b]
            if fooled or loss[k] > best_loss[b]:
                taken = k
                best_loss[b] = loss[k]
        accepted = queries[taken] if taken >= 0 else -1
        last = count - 1 if last < -1 else last
        first = restarts[b] * count
        table = geometry_at + 12 * first
        if accepted >= 0:
            window = pointer(table + 12 * accepted, np.int32)
            _copy(best, b * size, new, taken * size, window, channels, width, pixel, channel)
        if fooled:
            slots[state + columns.STEP] = slots[state + columns.SUCCESS_STEP] = last + 1
            slots[state + columns.ACTIVE] = 0
            continue
        query = last + 1
        for k in range(row, row + ahead):
            # the row equals the best one again, then differs in its next window alone
            for which in range(2):
                old = queries[k] if which == 0 else accepted
                if 0 <= old < count:
                    window = pointer(table + 12 * old, np.int32)
                    _copy(new, k * size, best, b * size, window, channels, width, pixel, channel)
            queries[k] = count
        radius = radii[b] if eps_rows != 0 else eps
        found = row
        while query < count and found < row + ahead:
            window = pointer(table + 12 * query, np.int32)
            signs = pointer(signs_at + (first + query) * channels, np.int8)
            if _propose(
                new,
                found * size,
                best,
                x,
                b * size,
                window,
                signs,
                channels,
                width,
                pixel,
                channel,
                radius,
                lo,
                hi,
            ):
                queries[found] = query
                found += 1
            query += 1
        slots[state + columns.STEP] = queries[row]
        slots[state + columns.ACTIVE] = queries[row] < count


def square_linf_(
    x_new: torch.Tensor,
    x_best: torch.Tensor,
    x: torch.Tensor,
    loss: torch.Tensor,
    prediction: torch.Tensor,
    labels: torch.Tensor,
    best_loss: torch.Tensor,
    queries: torch.Tensor,
    wasted: torch.Tensor,
    slots: torch.Tensor,
    restarts: torch.Tensor,
    geometry: torch.Tensor,
    signs: torch.Tensor,
    eps: float,
    eps_rows: torch.Tensor | None,
    lo: float,
    hi: float,
    count: int,
) -> Any:
    """The op's arguments by position; NotImplemented with losses or radii of another dtype."""
    dtype = x.dtype
    if best_loss.dtype != dtype or (eps_rows is not None and eps_rows.dtype != dtype):
        return NotImplemented
    if x.numel() == 0:
        return None
    batch, channels, height, width = x.shape
    pixel, channel = (1, height * width) if x_best.is_contiguous() else (channels, 1)
    _step[dtype](
        x_new.data_ptr(),
        x_best.data_ptr(),
        x.data_ptr(),
        loss.data_ptr(),
        prediction.data_ptr(),
        labels.data_ptr(),
        best_loss.data_ptr(),
        queries.data_ptr(),
        wasted.data_ptr(),
        slots.data_ptr(),
        restarts.data_ptr(),
        geometry.data_ptr(),
        signs.data_ptr(),
        batch,
        queries.shape[1],
        channels,
        height * width,
        width,
        pixel,
        channel,
        eps,
        address(eps_rows),
        lo,
        hi,
        count,
    )
    return None
