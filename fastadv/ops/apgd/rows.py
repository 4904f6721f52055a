"""What APGD's steps share on the host: checks of their state, row flags, tiles and row copies."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch

from fastadv.kernels import slots
from fastadv.kernels.apgd import progress as apgd_progress
from fastadv.ops import doubles, layout


class Turn(NamedTuple):
    """(B, 1) flags of the rows, after the loss head has evaluated their iterates."""

    active: torch.Tensor
    first: torch.Tensor  # the start iterate was evaluated
    improved: torch.Tensor
    hit: torch.Tensor | None  # active and misclassified
    restore: torch.Tensor | None

    def rows(self, rows: slice) -> "Turn":
        hit, restore = (None if flag is None else flag[rows] for flag in (self.hit, self.restore))
        return Turn(self.active[rows], self.first[rows], self.improved[rows], hit, restore)


def turn_of(
    slot_state: torch.Tensor, progress: torch.Tensor | None, correct: torch.Tensor | None
) -> Turn:
    active = slot_state[:, slots.ACTIVE, None] != 0
    first = slot_state[:, slots.STEP, None] == 1  # the head has advanced it already
    improved = (slot_state[:, slots.IMPROVED, None] != 0).logical_and_(active)
    hit = None if correct is None else correct.logical_not()[:, None].logical_and_(active)
    restore = None
    if progress is not None:
        restore = (progress[:, apgd_progress.RESTORE, None] != 0).logical_and_(active)
    return Turn(active, first, improved, hit, restore)


def as_rows(tensor: torch.Tensor) -> torch.Tensor:
    """A dense (B, ...) tensor in any layout as (B, D), in the order of its memory."""
    size = math.prod(tensor.shape[1:])
    return tensor.as_strided((len(tensor), size), (size, 1), tensor.storage_offset())


def tiles(
    batch: int, size: int, elements: int, *, split_rows: bool
) -> Iterator[tuple[slice, slice]]:
    """(rows, columns) of parts of `elements` a thread; of whole rows unless split_rows.

    The buffers of a part stay in the cache from one elementwise operation to the next.
    """
    tile = elements * torch.get_num_threads()
    rows = max(1, tile // size)
    columns = min(size, tile) if split_rows else size
    for row in range(0, batch, rows):
        for column in range(0, size, columns):
            yield slice(row, row + rows), slice(column, column + columns)


def _words(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The tensors viewed as the widest elements that fit them all.

    torch.where selects element by element: 16 bytes at a time are four times as fast as 4.
    """
    if not doubles.has_float64(tensors[0]):  # nor complex numbers
        return tensors
    for word in (torch.complex128, torch.complex64):
        if all(
            t.shape[-1] * t.element_size() % word.itemsize == 0
            and t.stride(0) * t.element_size() % word.itemsize == 0
            and t.storage_offset() * t.element_size() % word.itemsize == 0
            for t in tensors
        ):
            return tuple(t.view(word) for t in tensors)
    return tensors


def pick(flags: torch.Tensor, chosen: torch.Tensor, otherwise: torch.Tensor) -> torch.Tensor:
    """Rows of `chosen` where flagged, of `otherwise` elsewhere, in a new tensor."""
    a, b = _words(chosen, otherwise)
    return torch.where(flags, a, b).view(chosen.dtype)


def put(destination: torch.Tensor, flags: torch.Tensor, source: torch.Tensor) -> None:
    """destination[r] = source[r] where flags[r]."""
    a, b = _words(source, destination)
    torch.where(flags, a, b, out=b)


def bit_mask(flags: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """All ones where flagged, for `&` with the bits of `dtype`: 0 whatever is there, NaN too."""
    return flags.to(torch.int64 if dtype == torch.float64 else torch.int32).neg_()


def cleared(value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """`value` in place, zero where the mask is."""
    value.view(mask.dtype).bitwise_and_(mask)
    return value


def checked_images(
    x_adv: torch.Tensor, grad: torch.Tensor, **images: torch.Tensor | None
) -> torch.Tensor:
    """`grad` in the dense layout that x_adv and every one of `images` have; raises ValueError."""
    memory_format = layout.dense_format(x_adv)
    if memory_format is None:
        raise ValueError(
            f"x_adv must be dense; got shape {tuple(x_adv.shape)} with strides {x_adv.stride()}. "
            "Call x_adv.contiguous() first."
        )
    for name, image in images.items():
        if image is not None and (
            (image.shape, image.dtype, image.device) != (x_adv.shape, x_adv.dtype, x_adv.device)
            or not layout.is_dense_as(image, memory_format)
        ):
            raise ValueError(
                f"{name} must match x_adv: {tuple(x_adv.shape)} {x_adv.dtype} on {x_adv.device} "
                f"with strides {x_adv.stride()}; got {tuple(image.shape)} {image.dtype} on "
                f"{image.device} with strides {image.stride()}"
            )
    if (grad.shape, grad.dtype, grad.device) != (x_adv.shape, x_adv.dtype, x_adv.device):
        raise ValueError(
            f"grad must match x_adv: {tuple(x_adv.shape)} {x_adv.dtype} on {x_adv.device}; got "
            f"{tuple(grad.shape)} {grad.dtype} on {grad.device}"
        )
    return layout.in_format(grad, memory_format)


def check_rows(x: torch.Tensor, dtype: torch.dtype, **rows: torch.Tensor | None) -> None:
    """Raise ValueError unless each of `rows` is a contiguous (B,) tensor of `dtype`."""
    for name, value in rows.items():
        if value is not None and (
            (value.shape, value.dtype, value.device) != (x.shape[:1], dtype, x.device)
            or not value.is_contiguous()
        ):
            raise ValueError(
                f"{name} must be ({x.shape[0]},) {dtype} on {x.device}, contiguous; got "
                f"{tuple(value.shape)} {value.dtype} on {value.device}"
            )


def check_state(x: torch.Tensor, slot_state: torch.Tensor, progress: torch.Tensor | None) -> None:
    """Raise ValueError unless slots and progress are the engine's; x: anything with B rows."""
    expected: list[tuple[str, torch.Tensor, int, torch.dtype]] = [
        ("slots", slot_state, slots.WIDTH, torch.int32)
    ]
    if progress is not None:
        dtype = layout.compute_dtype(x)
        expected.append(("progress", progress, apgd_progress.WIDTH, dtype))
    for name, value, width, dtype in expected:
        if (value.shape, value.dtype, value.device) != ((x.shape[0], width), dtype, x.device) or (
            not value.is_contiguous()
        ):
            raise ValueError(
                f"{name} must be ({x.shape[0]}, {width}) {dtype} on {x.device}, contiguous; got "
                f"{tuple(value.shape)} {value.dtype} on {value.device}"
            )


def check_hit(x: torch.Tensor, correct: torch.Tensor | None, x_hit: torch.Tensor | None) -> None:
    if (correct is None) != (x_hit is None):
        raise ValueError("correct and x_hit belong together: pass both or neither")
    check_rows(x, torch.bool, correct=correct)
