"""The boxes of samples, element by element, as ops take them: checks, and planes of them."""

import math

import torch

from fastadv.kernels import box as planes
from fastadv.ops import layout


def check_box(box: torch.Tensor, x: torch.Tensor) -> None:
    """Raises ValueError unless `box` is (B, 2, D) or (B, 3, D), as `packed` makes it."""
    size, kinds = math.prod(x.shape[1:]), (planes.PLANES, planes.PLANES_WITH_UNITS)
    shapes = [(len(x), count, size) for count in kinds]
    dtype = layout.compute_dtype(x)
    is_kind = tuple(box.shape) in shapes and (box.dtype, box.device) == (dtype, x.device)
    if not is_kind or not box.is_contiguous():
        raise ValueError(
            f"box must be {shapes[0]} or {shapes[1]} {dtype} on {x.device}, contiguous; got "
            f"{tuple(box.shape)} {box.dtype} on {box.device}"
        )


def packed(
    lower: torch.Tensor,
    upper: torch.Tensor,
    unit: torch.Tensor | None,
    like: torch.Tensor,
    memory_format: torch.memory_format | None = None,
) -> torch.Tensor:
    """The box (B, 2, D), (B, 3, D) with units, of `like`: (B, ...), in the order of its memory.

    lower, upper, unit: what broadcasts to like's shape. memory_format: of the tensor whose box it
    is; like's own if None, and in C order, as the copy which ops make, where it is not dense.
    """
    memory_format = memory_format or layout.dense_format(like) or torch.contiguous_format
    dtype, size = layout.compute_dtype(like), math.prod(like.shape[1:])
    given = [lower, upper] if unit is None else [lower, upper, unit]
    box = torch.empty(len(like), len(given), size, dtype=dtype, device=like.device)
    if box.numel() == 0:
        return box
    ordered = torch.empty(like.shape, device="meta").contiguous(memory_format=memory_format)
    for number, values in enumerate(given):
        plane(box, number, ordered).copy_(values.expand(like.shape))
    return box


def plane(box: torch.Tensor, number: int, like: torch.Tensor) -> torch.Tensor:
    """A plane of the box as a view in the shape of `like`, a dense tensor that it is the box of."""
    at = box.storage_offset() + number * box.stride(1)
    return box.as_strided(like.shape, (box.stride(0), *like.stride()[1:]), at)


def bounds_of(box: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(lower, upper), views in the shape of `like`."""
    return plane(box, planes.LOWER, like), plane(box, planes.UPPER, like)


def unit_of(box: torch.Tensor, like: torch.Tensor) -> torch.Tensor | None:
    """What each element is measured in, a view in the shape of `like`; None without units."""
    return plane(box, planes.UNIT, like) if box.shape[1] > planes.UNIT else None


def movable(value: torch.Tensor, box: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """`value`, 0 where the bounds of an element meet."""
    lower, upper = bounds_of(box, like)
    return value.masked_fill(lower >= upper, 0.0)
