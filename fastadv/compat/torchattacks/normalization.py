"""Normalised inputs: from and to pixel units, and what betrays that they are something else."""

from collections.abc import Sequence
from typing import Any

import torch

from fastadv.attacks.call import inputs as checks
from fastadv.diagnostics import emit
from fastadv.isolation import Model
from fastadv.wrappers import Normalized

# spacings at 1 that x may leave [0, 1] by: (x - mean) / std * std + mean is off by at most 2
_ROUND_TRIP = 8

Normalization = dict[str, torch.Tensor]


def make(mean: Sequence[float], std: Sequence[float]) -> Normalization:
    """{"mean", "std"} as (1, C, 1, 1) float32; raises ValueError unless C agrees and std > 0."""
    rows = [torch.as_tensor(values, dtype=torch.float32).cpu() for values in (mean, std)]
    if rows[0].ndim != 1 or rows[0].shape != rows[1].shape or not bool((rows[1] > 0).all()):
        raise ValueError(
            f"mean and std must be one float a channel, std > 0; got mean={mean}, std={std}"
        )
    return {name: row.view(1, -1, 1, 1) for name, row in zip(("mean", "std"), rows, strict=True)}


def channels(used: Normalization, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(mean, std) that broadcast against x: (B, C, ...), in its dtype and on its device."""
    count = used["mean"].numel()
    if x.ndim < 2 or count not in (1, x.shape[1]):
        raise ValueError(
            f"set_normalization_used was given {count} channels; got inputs of {tuple(x.shape)}"
        )
    shape = (1, -1, *[1] * (x.ndim - 2))
    mean, std = (used[name].to(x.device, x.dtype).view(shape) for name in ("mean", "std"))
    return mean, std


def to_pixels(inputs: Any, used: Normalization | None) -> torch.Tensor:
    """Inputs in [0, 1], undoing the normalisation `used`; synchronises once.

    What the round trip through the normalisation leaves outside [0, 1] is clamped. Raises
    ValueError for more than that, and warns of inputs that seem not to be normalised at all.
    """
    inputs = checks.check_images(inputs, None)
    if inputs.numel() == 0:
        return inputs
    x = inputs
    if used is not None:
        mean, std = channels(used, inputs)
        x = inputs * std + mean
    low, high, given_low, given_high = torch.stack(
        [*torch.aminmax(x), *torch.aminmax(inputs)]
    ).tolist()
    slack = max(_ROUND_TRIP * torch.finfo(x.dtype).eps, checks.ROUNDING)
    if low < -slack or high > 1 + slack:
        if used is None:
            raise ValueError(
                f"inputs must lie in [0, 1]; got values from {low:.9g} to {high:.9g}, "
                f"{max(-low, high - 1):.3g} beyond. If they are normalised, say so: "
                "atk.set_normalization_used(mean, std)"
            )
        raise ValueError(
            f"inputs * std + mean must lie in [0, 1]; got values from {low:.9g} to {high:.9g}: the "
            f"inputs, from {given_low:g} to {given_high:g}, were not normalised by mean="
            f"{used['mean'].flatten().tolist()}, std={used['std'].flatten().tolist()}, or not once"
        )
    if used is not None and given_low >= 0 and given_high <= 1 and not _is_identity(used):
        message = (
            "set_normalization_used expects normalised inputs, but all of these lie in [0, 1] as "
            "they are: do not normalise inside the model and do normalise the inputs, or leave "
            "set_normalization_used out"
        )
        emit(UserWarning(message))
    return x.clamp(0.0, 1.0) if low < 0 or high > 1 else x


def pixel_model(model: Model, used: Normalization | None, x: torch.Tensor) -> Model:
    """The model of pixels: `model` itself, or behind its normalisation on the device of x."""
    if used is None:
        return model
    mean, std = (rows.flatten().tolist() for rows in channels(used, x))
    if len(mean) != x.shape[1]:
        mean, std = mean * x.shape[1], std * x.shape[1]
    wrapped = Normalized(model, mean, std)
    # not wrapped.to(): the user's model, which it contains, stays where it is
    wrapped.mean, wrapped.std = wrapped.mean.to(x.device), wrapped.std.to(x.device)
    return wrapped


def check_single(model: Model, used: Normalization | None) -> None:
    """Raises ValueError if `model` normalises its inputs itself although they are normalised."""
    if used is not None and isinstance(model, Normalized):
        raise ValueError(
            "the model is a fastadv.Normalized and would normalise its inputs twice: give "
            "set_normalization_used the bare network, or leave it out and attack in [0, 1]"
        )


def _is_identity(used: Normalization) -> bool:
    return bool((used["mean"] == 0).all() and (used["std"] == 1).all())
