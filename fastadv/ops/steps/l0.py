"""The L0 step as an op: ascent, then the exact projection onto few changed entries and the box."""

from collections.abc import Callable

import numpy as np
import torch

from fastadv.ops import layout, reduction, registry
from fastadv.ops.steps import arguments as step_arguments
from fastadv.ops.steps import reference as step_reference
from fastadv.ops.steps.arguments import StepCall

# (gains, counts) -> which of each row are kept: the largest `count`, of equals the first, no zeros
Select = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _largest_by_sort(gain: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    order = gain.argsort(dim=1, descending=True, stable=True)
    place = torch.arange(gain.shape[1], device=gain.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, place)
    return (rank < count) & (gain > 0)


def _largest_by_partition(gain: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """In numpy, which finds the count-th largest without a sort: a step of 250 x 3,072 takes a
    fifth of the time."""
    gains, size = gain.numpy(), gain.shape[1]
    counts = np.minimum(count.numpy()[:, 0], size).astype(np.intp)
    last = size - counts
    ordered = np.partition(gains, np.unique(last), axis=1)
    least = ordered[np.arange(len(gains)), last][:, None]
    kept, ties = gains > least, gains == least
    room = counts - np.count_nonzero(kept, axis=1)
    full = np.flatnonzero(np.count_nonzero(ties, axis=1) > room)
    ties[full] &= np.cumsum(ties[full], axis=1) <= room[full, None]
    return torch.from_numpy((kept | ties) & (gains > 0))


def _unit(direction: torch.Tensor) -> torch.Tensor:
    """direction / ||direction||_1 of rows (B, D); of zeros 0. By the largest entry first: no sum of
    gradients of any size is infinite or 0."""
    finite = direction.clamp(*_limits(direction))
    largest = finite.abs().amax(1, keepdim=True)
    scaled = finite / torch.where(largest > 0, largest, 1.0)
    return scaled / reduction.tree_sum(scaled.abs()).clamp(min=1).unsqueeze(1)


def _limits(like: torch.Tensor) -> tuple[float, float]:
    info = torch.finfo(like.dtype)
    return info.min, info.max


def _moved(call: StepCall, direction: torch.Tensor, channels: int, select: Select) -> torch.Tensor:
    if call.x_adv.numel() == 0:
        return call.x_adv
    dtype = layout.compute_dtype(call.x_adv)
    start, d, x = (t.to(dtype).flatten(1) for t in (call.x_adv, direction, call.x))
    step = layout.column(call.step_size, call.step_rows, x)
    z = start + step * _unit(d)
    moved = z.clamp(call.lo, call.hi)
    near, far = moved - x, z - x
    gain = near * (2 * far - near)  # far^2 - (far - near)^2
    gain = torch.where(gain > 0, gain, 0.0).view(len(x), channels, -1)
    gain = reduction.tree_sum(gain.transpose(1, 2).reshape(-1, channels)).view(len(x), -1)
    kept = select(gain, layout.column(call.eps, call.eps_rows, x).floor())
    kept = kept.unsqueeze(1).expand(-1, channels, -1).reshape(x.shape)
    # where nothing is changed the bits are those of x: -0.0 stays -0.0
    return torch.where(kept & (moved != x), moved, x).view(call.x_adv.shape)


def _step(select: Select, *arguments) -> None:
    *shared, channels = arguments
    call = StepCall(*shared)
    moved = _moved(call, step_reference.direction_of(call), channels, select)
    step_reference.store(call, moved)


def _step_reference(*arguments) -> None:
    _step(_largest_by_sort, *arguments)


def _step_on_cpu(*arguments) -> None:
    _step(_largest_by_partition, *arguments)


def _launch_step(*arguments) -> None:
    *shared, channels = arguments
    call = StepCall(*shared)
    x_adv = call.x_adv
    memory_format = layout.dense_format(x_adv)
    assert memory_format is not None, "the public wrapper makes every step tensor dense"
    positions = x_adv[0].numel() // channels if len(x_adv) else 0
    kernels = registry.kernels("steps.l0")
    gains = None
    if not kernels.fits(channels, positions):
        shape, dtype = (len(x_adv), positions), layout.compute_dtype(x_adv)
        gains = torch.empty(shape, dtype=dtype, device=x_adv.device)
    model_input = call.model_input
    kernels.launch_l0(
        *call,
        gains,
        channels=channels,
        inner=layout.inner_extent(x_adv, memory_format),
        cross=model_input is not None and not layout.is_dense_as(model_input, memory_format),
        channels_last=memory_format is not torch.contiguous_format,
    )


_STEP_INPLACE = registry.register(
    f"l0_step_(Tensor(a!) x_adv, Tensor grad, Tensor x, {step_arguments.STEP_SCHEMA}, "
    "int channels) -> ()",
    reference=_step_reference,
    cpu=_step_on_cpu,
    launch=_launch_step,
    shared=("mean", "std"),
    tolerance=1e-6,
)


def l0_step_(
    x_adv: torch.Tensor,
    grad: torch.Tensor,
    x: torch.Tensor,
    *,
    step_size: float | torch.Tensor,
    eps: float | torch.Tensor,
    bounds: tuple[float, float] | None = (0.0, 1.0),
    pixels: bool = False,
    slots: torch.Tensor | None = None,
    momentum: torch.Tensor | None = None,
    decay: float = 1.0,
    model_input: torch.Tensor | None = None,
    mean: torch.Tensor | None = None,
    std: torch.Tensor | None = None,
) -> torch.Tensor:
    """One L0 PGD step, in place: z = x_adv + step_size * grad / ||grad||_1, projected onto the
    points of the box that differ from x in at most eps entries.

    The projection is exact: of an entry, staying at x instead of moving to clip(z) costs
    (z - x)^2 - (z - clip(z))^2; the eps entries of the largest cost move (of equal ones those of
    the lowest index), all others are x, bit for bit. pixels: x is (B, C, ...), and what counts is
    positions, whose cost is the sum over their channels.

    x_adv, grad, x: (B, ...), same shape, dtype and device; x in bounds. step_size: a length in L1,
    in input units, float or (B,); eps: a whole number of entries or pixels, float or (B,). A NaN
    gradient counts as 0. bounds=None clips nothing. momentum, model_input, mean, std, slots: as in
    `linf_step_`. Returns x_adv. Raises ValueError if shapes, dtypes or devices differ, or where
    pixels are asked for of what has none.

    Example: `fastadv.ops.l0_step_(x_adv, grad, x, step_size=30.0, eps=20)`.
    Source: Croce and Hein 2019, arXiv:1909.05040, section 4. Unlike the authors' code, which keeps
    all that equal the eps-th largest and adds noise of 1e-12, at most eps entries move.
    """
    if pixels and x.ndim < 3:
        raise ValueError(f"pixels=True needs images, x of (B, C, ...); got {tuple(x.shape)}")
    reach = step_arguments.reach(step_size, eps, bounds, x)
    state = slots, momentum, decay, model_input, mean, std
    channels = x.shape[1] if pixels else 1
    return step_arguments.step_in_place(
        _STEP_INPLACE, StepCall(x_adv, grad, x, *reach, *state), channels
    )


def l0_step(
    x_adv: torch.Tensor,
    grad: torch.Tensor,
    x: torch.Tensor,
    *,
    step_size: float | torch.Tensor,
    eps: float | torch.Tensor,
    bounds: tuple[float, float] | None = (0.0, 1.0),
    pixels: bool = False,
) -> torch.Tensor:
    """`l0_step_` on a copy of x_adv.

    Example: `x_adv = fastadv.ops.l0_step(x_adv, grad, x, step_size=30.0, eps=20)`.
    """
    out = step_arguments.dense_copy(x_adv)
    return l0_step_(out, grad, x, step_size=step_size, eps=eps, bounds=bounds, pixels=pixels)


def l0_step_reference(
    x_adv: torch.Tensor,
    grad: torch.Tensor,
    x: torch.Tensor,
    *,
    step_size: float | torch.Tensor,
    eps: float | torch.Tensor,
    bounds: tuple[float, float] | None = (0.0, 1.0),
    pixels: bool = False,
) -> torch.Tensor:
    """The eager twin of `l0_step`: it defines the result up to rounding (contract C1)."""
    call = StepCall(x_adv, grad, x, *step_arguments.reach(step_size, eps, bounds, x))
    channels = x.shape[1] if pixels else 1
    direction = step_reference.direction_of(call)
    return _moved(call, direction, channels, _largest_by_sort).to(x_adv.dtype)
