"""Memory layouts: dense formats, channels, and parameters given for each sample."""

import math

import torch

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def dense_format(tensor: torch.Tensor) -> torch.memory_format | None:
    """The format in which `tensor` fills its memory without gaps, or None (sliced, expanded)."""
    if tensor.is_contiguous():
        return torch.contiguous_format
    channels_last = _CHANNELS_LAST.get(tensor.ndim)
    if channels_last is not None and tensor.is_contiguous(memory_format=channels_last):
        return channels_last
    return None


def is_dense_as(tensor: torch.Tensor, memory_format: torch.memory_format) -> bool:
    if memory_format is torch.contiguous_format:
        return tensor.is_contiguous()
    return tensor.ndim == (4 if memory_format is torch.channels_last else 5) and (
        tensor.is_contiguous(memory_format=memory_format)
    )


def in_format(tensor: torch.Tensor, memory_format: torch.memory_format) -> torch.Tensor:
    """`tensor` itself if it is dense in `memory_format`, else a copy that is."""
    if is_dense_as(tensor, memory_format):
        return tensor
    return tensor.contiguous(memory_format=memory_format)


def dense_like(tensor: torch.Tensor, rows: int, dtype: torch.dtype | None = None) -> torch.Tensor:
    """An uninitialised dense tensor of `rows` samples like tensor's, in its own format if any."""
    memory_format = dense_format(tensor)
    channels_last = _CHANNELS_LAST.get(tensor.ndim)
    if memory_format is None and channels_last is not None and tensor.stride(1) == 1:
        memory_format = channels_last  # a slice of a channels_last batch
    return torch.empty(
        (rows, *tensor.shape[1:]),
        dtype=dtype or tensor.dtype,
        device=tensor.device,
        memory_format=memory_format or torch.contiguous_format,
    )


def gather_rows(tensor: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """tensor[index] in tensor's own memory format, which index_select does not keep."""
    if tensor.ndim < 4:
        return tensor.index_select(0, index)
    return dense_like(tensor, len(index)).copy_(tensor.index_select(0, index))


def inner_extent(tensor: torch.Tensor, memory_format: torch.memory_format) -> int:
    """How many neighbours of a sample share a channel (NCHW: H*W) or a pixel (NHWC: C)."""
    if tensor.ndim < 2:
        return 1
    if memory_format is torch.contiguous_format:
        return math.prod(tensor.shape[2:])
    return tensor.shape[1]


def per_sample(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """(B,) as (B, 1, ..., 1), in the dtype that `like` is computed in."""
    return value.to(compute_dtype(like)).view(-1, *[1] * (like.ndim - 1))


def column(scalar: float, rows: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
    """(B, 1) in like's dtype: the values of `rows`, (B,), where given, else of `scalar`."""
    values = like.new_full((len(like),), scalar) if rows is None else rows.to(like.dtype)
    return values.unsqueeze(1)


def per_channel(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """(C,) as (1, C, 1, ..., 1), in the dtype that `like` is computed in."""
    return value.to(compute_dtype(like)).view(1, -1, *[1] * (like.ndim - 2))


def compute_dtype(tensor: torch.Tensor) -> torch.dtype:
    """fp64 tensors are computed in fp64, all others in fp32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
