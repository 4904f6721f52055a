"""Settings that may hold tensors: compared, and written so that they can be pasted back."""

from dataclasses import fields
from typing import Any

import torch


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
