"""Float64 where the device has it. Apple's MPS has none, nor have some GPUs of Intel.

There, what is decided once for a sample (distances, agreement of logits, bytes) is computed in
float64 all the same, on the host; what every step computes takes the device's widest dtype instead.
On every other device these are `.double()` and nothing more.
"""

import torch


def has_float64(where: torch.Tensor | torch.device) -> bool:
    """Whether the device, or that of a tensor, computes in float64."""
    device = where.device if isinstance(where, torch.Tensor) else where
    if device.type == "xpu":
        return bool(torch.xpu.get_device_properties(device).has_fp64)
    return device.type != "mps"


def widest(where: torch.Tensor | torch.device) -> torch.dtype:
    """The widest float dtype of the device, or of that of a tensor."""
    return torch.float64 if has_float64(where) else torch.float32


def doubled(value: torch.Tensor, beside: torch.Tensor | None = None) -> torch.Tensor:
    """`value` in float64: on the device of `beside` (its own), or on the host if that has none.

    What follows from it comes back by `returned`. Synchronises where it goes to the host.
    """
    if beside is None:
        return value.double() if has_float64(value) else _fetched(value)
    return value.to(beside.device, torch.float64) if has_float64(beside) else _fetched(value)


def returned(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """What was computed from `doubled` tensors, on the device of `like`; rounded to float32 if it
    is in float64 and that device has none."""
    return value if has_float64(like) else _sent(value, like)


def _fetched(value: torch.Tensor) -> torch.Tensor:
    return value.cpu().double()


def _sent(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return (value.float() if value.dtype == torch.float64 else value).to(like.device)
