"""`fastadv.ops.augment_batch` in eager torch, by the random numbers of either of two sources."""

import torch
from torch.nn import functional

from fastadv.kernels.noise import streams
from fastadv.ops import layout
from fastadv.ops.noise import start
from fastadv.ops.noise.reference import Draws


def flip_key(flip: str | None, draw: int) -> tuple[int, int] | None:
    """(draw, parity) whose bit decides a flip: an alternating one keeps the bit of epoch 0."""
    if flip is None:
        return None
    return (draw, 0) if flip == "random" else (0, draw & 1)


def empty_batch(
    images: torch.Tensor, index: torch.Tensor, dtype: torch.dtype, channels_last: bool
) -> torch.Tensor:
    return torch.empty(
        (len(index), *images.shape[1:]),
        dtype=dtype,
        device=images.device,
        memory_format=torch.channels_last if channels_last else torch.contiguous_format,
    )


def no_start(images: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What the op returns without a start: schemas have no optional results."""
    return images.new_empty(0, dtype=dtype)


def _reflected(size: int, pad: int, device: torch.device) -> torch.Tensor:
    """Coordinates -pad .. size + pad - 1, mirrored at the first and last one."""
    position = torch.arange(-pad, size + pad, device=device)
    return size - 1 - (size - 1 - position.abs()).abs()


def _cropped(rows: torch.Tensor, words: torch.Tensor, pad: int, reflect: bool) -> torch.Tensor:
    """(B, C, H, W) windows of the padded rows, each at the offset that its two words give."""
    batch, channels, height, width = rows.shape
    if reflect:
        # as indices: torch pads no bytes by reflection
        rows = rows.index_select(2, _reflected(height, pad, rows.device))
        rows = rows.index_select(3, _reflected(width, pad, rows.device))
    else:
        rows = functional.pad(rows, (pad, pad, pad, pad))
    offset = (words * (2 * pad + 1)) >> 32
    plane, line = (height + 2 * pad) * (width + 2 * pad), width + 2 * pad
    device = rows.device
    first = torch.arange(batch * channels, device=device).view(batch, channels, 1) * plane
    first = first + (offset[:, :1] * line + offset[:, 1:]).view(batch, 1, 1)
    first = (first + torch.arange(height, device=device) * line).flatten()
    # a view of every run of `width` bytes: index_select copies whole runs, a gather single bytes
    runs = rows.contiguous().as_strided((rows.numel() - width + 1, width), (1, 1))
    return runs.index_select(0, first).view(batch, channels, height, width)


def _flipped(rows: torch.Tensor, words: torch.Tensor, parity: int) -> torch.Tensor:
    bit = (words[:, 0] & 1) ^ parity
    batch = len(rows)
    which = torch.arange(batch, device=rows.device) + batch * bit
    return torch.cat((rows, rows.flip(3))).index_select(0, which)  # a fourth of a where's time


def augment(
    source: Draws,
    images,
    index,
    seed,
    draw,
    pad,
    reflect,
    flip,
    dtype,
    channels_last,
    mean,
    std,
    start_eps,
    lo,
    hi,
    start_seed,
    start_draw,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The op `fastadv::augment_batch` by the numbers of `source`; its arguments by position."""
    rows = images.index_select(0, index)
    if rows.numel() > 0:
        if pad > 0:
            words = source.words(seed, index, streams.AUGMENT_CROP, draw, 2)
            rows = _cropped(rows, words, pad, reflect)
        key = flip_key(flip, draw)
        if key is not None:
            words = source.words(seed, index, streams.AUGMENT_FLIP, key[0], 1)
            rows = _flipped(rows, words, key[1])
    x = empty_batch(images, index, torch.float32, channels_last).copy_(rows)
    x.div_(x.new_full((), 255.0))  # a tensor of the device, as in `rounding.divided`
    if mean is not None and std is not None:
        x.sub_(layout.per_channel(mean, x)).div_(layout.per_channel(std, x))
    x = x.to(dtype)
    if start_eps is None:
        return x, no_start(images, dtype)
    draws = torch.full_like(index, start_draw, dtype=torch.int32)
    x_start = start.drawn_start(
        source, x, index, draws, start_eps, None, lo, hi, start_seed, "linf_uniform", None, None
    )
    if x_start.stride() != x.stride():  # one channel: channels_last is contiguous too
        x_start = torch.empty_like(x).copy_(x_start)
    return x, x_start
