"""Row select as an op: keep the rows that a flag marks."""

import torch

from fastadv.ops import layout, registry


def _select_reference(destination: torch.Tensor, source: torch.Tensor, flags: torch.Tensor) -> None:
    rows = (flags != 0).view(-1, *[1] * (destination.ndim - 1))
    destination.copy_(torch.where(rows, source, destination))


_SELECT = registry.register(
    "select_rows_(Tensor(a!) destination, Tensor source, Tensor flags) -> ()",
    reference=_select_reference,
    compiled="steps.loops_select",
    launch=lambda *arguments: registry.kernels("steps.select").launch_select_rows(*arguments),
)


def select_rows_(
    destination: torch.Tensor, source: torch.Tensor, flags: torch.Tensor
) -> torch.Tensor:
    """Copy row r of source into destination where flags[r] != 0, in place, returning destination.

    destination, source: (B, ...), same shape, dtype, device and dense layout (a source in another
    layout is copied first). flags: (B,) int32, which may be a column of the engine's slot state.
    One launch. Raises ValueError if shapes, dtypes or devices differ, or if destination is not
    dense.

    Example: `fastadv.ops.select_rows_(x_best, x_adv, slots[:, IMPROVED])`.
    """
    if (source.shape, source.dtype, source.device) != (
        destination.shape,
        destination.dtype,
        destination.device,
    ):
        raise ValueError(
            f"source must match destination: {tuple(destination.shape)} {destination.dtype} on "
            f"{destination.device}; got {tuple(source.shape)} {source.dtype} on {source.device}"
        )
    if (flags.shape, flags.dtype, flags.device) != (
        destination.shape[:1],
        torch.int32,
        destination.device,
    ):
        raise ValueError(
            f"flags must be ({destination.shape[0] if destination.ndim else ''},) int32 on "
            f"{destination.device}; got {tuple(flags.shape)} {flags.dtype} on {flags.device}"
        )
    memory_format = layout.dense_format(destination)
    if memory_format is None:
        raise ValueError(
            f"destination must be dense; got shape {tuple(destination.shape)} with strides "
            f"{destination.stride()}. Call destination.contiguous() first."
        )
    _SELECT(destination, layout.in_format(source, memory_format), flags)
    return destination
