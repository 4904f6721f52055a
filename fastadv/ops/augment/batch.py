"""Batches of a byte data set: gather, crop, flip, scale, cast and random start, in one op."""

import functools
from typing import Literal, NamedTuple, get_args

import torch

from fastadv.kernels.noise import streams
from fastadv.ops import registry
from fastadv.ops.augment import reference as augment_reference
from fastadv.ops.augment.reference import empty_batch, flip_key, no_start
from fastadv.ops.noise import philox
from fastadv.ops.noise.cpu import NUMPY
from fastadv.ops.noise.reference import EAGER
from fastadv.ops.steps import arguments as step_arguments

Padding = Literal["zeros", "reflect"]
Flip = Literal["random", "alternate"]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class _Augmentation(NamedTuple):
    """How each image is cut and turned."""

    seed: int
    epoch: int
    crop: int
    padding: Padding
    flip: Flip | None


class _Form(NamedTuple):
    """How the batch is stored."""

    dtype: torch.dtype
    channels_last: bool
    mean: torch.Tensor | None
    std: torch.Tensor | None


class _Start(NamedTuple):
    """The random start around the batch, if eps is given."""

    eps: float | None
    seed: int
    draw: int
    bounds: tuple[float, float] | None


class AugmentedBatch(NamedTuple):
    """A batch as a network takes it: x, and a random start around it where one was asked for."""

    x: torch.Tensor
    x_start: torch.Tensor | None


_augment_reference = functools.partial(augment_reference.augment, EAGER)


def _launch_augment(
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
    x = empty_batch(images, index, dtype, channels_last)
    x_start = None if start_eps is None else torch.empty_like(x)
    registry.kernels("augment.augment").launch_augment(
        x,
        x_start,
        images,
        index,
        seed=seed,
        draw=draw,
        pad=pad,
        reflect=reflect,
        flip=flip_key(flip, draw),
        mean=mean,
        std=std,
        start_seed=start_seed,
        start_draw=start_draw,
        eps=start_eps or 0.0,
        lo=lo,
        hi=hi,
        channels_last=channels_last,
    )
    return x, no_start(images, dtype) if x_start is None else x_start


def _fake_augment(
    images, index, seed, draw, pad, reflect, flip, dtype, channels_last, mean, std, start_eps, *args
) -> tuple[torch.Tensor, torch.Tensor]:
    x = empty_batch(images, index, dtype, channels_last)
    return x, no_start(images, dtype) if start_eps is None else torch.empty_like(x)


_AUGMENT = registry.register(
    "augment_batch(Tensor images, Tensor index, int seed, int draw, int pad, bool reflect, "
    "str? flip, ScalarType dtype, bool channels_last, Tensor? mean, Tensor? std, "
    "float? start_eps, float lo, float hi, int start_seed, int start_draw) -> (Tensor, Tensor)",
    reference=_augment_reference,
    cpu=functools.partial(augment_reference.augment, NUMPY),
    cpu_dtypes=None,
    launch=_launch_augment,
    fake=_fake_augment,
    shared=("images", "mean", "std"),
)


def augment_batch(
    images: torch.Tensor,
    index: torch.Tensor,
    *,
    seed: int = 0,
    epoch: int = 0,
    crop: int = 0,
    padding: Padding = "zeros",
    flip: Flip | None = None,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    mean: torch.Tensor | None = None,
    std: torch.Tensor | None = None,
    start_eps: float | None = None,
    start_seed: int = 0,
    start_draw: int = 0,
    bounds: tuple[float, float] | None = (0.0, 1.0),
) -> AugmentedBatch:
    """Rows of a byte data set as a batch: images[index] / 255, cropped, flipped and cast.

    images: (N, C, H, W) uint8, contiguous. index: (B,) int64 in [0, N), on the same device; another
    value is an IndexError on CPUs and a row of NaN from the kernel. crop: each image is padded by
    that many pixels and an H x W window is cut from it at a uniformly drawn offset;
    padding="zeros" is black, "reflect" mirrors without repeating the edge and needs crop < H, W.
    flip: mirrors left and right with probability 1/2 ("random"), or by such a draw in epoch 0 and
    then in every second epoch ("alternate"). mean, std: (C,), for (x / 255 - mean) / std, computed
    in float32 and rounded once to dtype: float32, bfloat16 or float16.

    start_eps: also return x_start, bit for bit `random_start(x, eps=start_eps, seed=start_seed,
    sample_ids=index, draw=start_draw, bounds=bounds)`; bounds=None clamps nothing. Not together
    with mean and std, because eps and bounds are in pixel units.

    Crop and flip are a pure function of (seed, epoch, index of the sample): batch, order, device
    and layout change no bit. Raises TypeError or ValueError for arguments that do not fit.

    Example: `x, _ = fastadv.ops.augment_batch(images, index, epoch=3, crop=4, flip="random")`.
    Source: He et al. 2016, arXiv:1512.03385, section 4.2; alternating flip: Jordan 2024,
    arXiv:2404.00498, section 3.6.
    """
    how = _Augmentation(seed, epoch, crop, padding, flip)
    form = _Form(dtype, channels_last, mean, std)
    start = _Start(start_eps, start_seed, start_draw, bounds)
    arguments = _checked(images, index, how, form, start)
    x, x_start = _AUGMENT(images, *arguments)
    return AugmentedBatch(x, None if start_eps is None else x_start)


def augment_batch_reference(
    images: torch.Tensor,
    index: torch.Tensor,
    *,
    seed: int = 0,
    epoch: int = 0,
    crop: int = 0,
    padding: Padding = "zeros",
    flip: Flip | None = None,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    mean: torch.Tensor | None = None,
    std: torch.Tensor | None = None,
    start_eps: float | None = None,
    start_seed: int = 0,
    start_draw: int = 0,
    bounds: tuple[float, float] | None = (0.0, 1.0),
) -> AugmentedBatch:
    """The eager twin of `augment_batch`: it defines the result, bit for bit."""
    how = _Augmentation(seed, epoch, crop, padding, flip)
    form = _Form(dtype, channels_last, mean, std)
    start = _Start(start_eps, start_seed, start_draw, bounds)
    arguments = _checked(images, index, how, form, start)
    x, x_start = _augment_reference(images, *arguments)
    return AugmentedBatch(x, None if start_eps is None else x_start)


def _checked(
    images: torch.Tensor, index: torch.Tensor, how: _Augmentation, form: _Form, start: _Start
) -> tuple:
    """The op's arguments after images; values of tensors are not checked (no synchronisation)."""
    check_images(images)
    if (index.ndim, index.dtype, index.device) != (1, torch.int64, images.device):
        raise ValueError(
            f"index must be a (B,) int64 tensor on {images.device}; got {tuple(index.shape)} "
            f"{index.dtype} on {index.device}"
        )
    check_augmentation(images, how.crop, how.padding, how.flip, form.dtype)
    for name, value in (("epoch", how.epoch), ("start_draw", start.draw)):
        if not 0 <= value < 1 << streams.DRAW_BITS:
            raise ValueError(f"{name} must lie in [0, 2^{streams.DRAW_BITS}); got {value}")
    mean, std = form.mean, form.std
    if (mean is None) != (std is None):
        raise ValueError(f"mean and std must be given together; got mean={mean}, std={std}")
    if mean is not None and std is not None:
        mean, std = _channel_values(images, "mean", mean), _channel_values(images, "std", std)
    start_eps = start.eps
    if start_eps is not None:
        if not start_eps >= 0:
            raise ValueError(f"start_eps must not be negative; got {start_eps}")
        if mean is not None:
            raise ValueError(
                "start_eps is in pixel units, mean and std leave them; got both. Wrap the model in "
                "fastadv.Normalized(model, mean, std) instead."
            )
        start_eps = float(start_eps)
    lo, hi = step_arguments.check_bounds(start.bounds)
    return (
        index.contiguous(),
        philox.signed_seed(how.seed),
        how.epoch,
        how.crop,
        how.padding == "reflect",
        how.flip,
        form.dtype,
        form.channels_last,
        mean,
        std,
        start_eps,
        lo,
        hi,
        philox.signed_seed(start.seed),
        start.draw,
    )


def check_images(images: torch.Tensor) -> None:
    """Raises TypeError unless images are bytes, ValueError unless contiguous (N, C, H, W)."""
    if images.dtype != torch.uint8:
        raise TypeError(
            f"images must be uint8; got {images.dtype}. Bytes that were scaled to [0, 1] come back "
            "with (images * 255).round().to(torch.uint8)."
        )
    if images.ndim != 4 or not images.is_contiguous():
        raise ValueError(
            f"images must be contiguous (N, C, H, W); got {tuple(images.shape)} with strides "
            f"{images.stride()}. Call images.contiguous() once, before the first batch."
        )


def check_augmentation(
    images: torch.Tensor, crop: int, padding: Padding, flip: Flip | None, dtype: torch.dtype
) -> None:
    """Raises ValueError for a crop, padding, flip or dtype that `augment_batch` cannot do."""
    if padding not in get_args(Padding):
        raise ValueError(f"padding must be one of {get_args(Padding)}; got {padding!r}")
    if flip is not None and flip not in get_args(Flip):
        raise ValueError(f"flip must be None or one of {get_args(Flip)}; got {flip!r}")
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {DTYPES}; got {dtype}")
    if crop < 0 or (padding == "reflect" and crop and crop >= min(images.shape[2:])):
        raise ValueError(
            f"crop must be 0 or more, and below height and width with padding='reflect'; got "
            f"{crop} for images of {tuple(images.shape[2:])}"
        )


def _channel_values(images: torch.Tensor, name: str, value: torch.Tensor) -> torch.Tensor:
    if (value.shape, value.device) != (images.shape[1:2], images.device):
        raise ValueError(
            f"{name} must be a ({images.shape[1]},) tensor on {images.device}; got "
            f"{tuple(value.shape)} on {value.device}"
        )
    return value.to(torch.float32).contiguous()
