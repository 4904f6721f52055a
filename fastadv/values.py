"""Settings that may hold tensors: compared, written to be pasted back, and radii to be read."""

import math
from dataclasses import fields
from typing import Any

import torch

_ROUNDING_OF_PIXELS = 1e-4  # in 1/255: float32 pixels of about 1, and far less than 0.0314


def same_value(a: object, b: object) -> bool:
    """a == b, where tensors are equal if all of their elements are."""
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(same_value, a, b))
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        return isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and torch.equal(a, b)
    return a == b


def same_settings(one: Any, other: object) -> bool:
    """Whether two dataclasses are of one class and all of their fields are the same."""
    return type(other) is type(one) and all(
        same_value(getattr(one, f.name), getattr(other, f.name)) for f in fields(one)
    )


def pasteable_value(value: object) -> str:
    """repr, but tensors in full precision."""
    if isinstance(value, tuple) and any(isinstance(one, torch.Tensor) for one in value):
        return f"({', '.join(map(pasteable_value, value))})"
    if not isinstance(value, torch.Tensor):
        return repr(value)
    if value.ndim == 0:
        return repr(value.item())
    return f"torch.tensor({value.tolist()}, dtype={value.dtype})"


def in_255ths(radius: float, *, digits: int = 6) -> str:
    """For readers: "8/255" within what rounding of pixels leaves, else a decimal.

    0.2 and its multiples, which are 51/255 and so on, stay what everyone writes.
    """
    count = round(radius * 255) if math.isfinite(radius) else 0
    if count >= 1 and count % 51 and abs(radius * 255 - count) < _ROUNDING_OF_PIXELS:
        return f"{count}/255"
    return f"{radius:.{digits}g}"
