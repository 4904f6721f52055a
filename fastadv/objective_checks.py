"""What the ready-made objectives refuse, in words: labels that they cannot judge, parameters."""

import math
import operator
from collections.abc import Iterable
from numbers import Real

import torch

_SUM = 1e-3  # what rounding may leave a row of probabilities from 1, in half precision _COARSE
_COARSE = 2e-2


def zeros_and_ones(y: torch.Tensor, *, name: str) -> None:
    """Raises ValueError for a y that is neither 0 nor 1; synchronises."""
    if y.dtype == torch.bool or y.numel() == 0:
        return
    odd = (y != 0) & (y != 1)
    if bool(odd.any()):
        raise ValueError(f"y of {name} must be 0 or 1; got {_shown(y[odd][0])}")


def binary_labels(y: torch.Tensor) -> None:
    zeros_and_ones(y, name="binary")


def multilabel_labels(y: torch.Tensor, labels: tuple[int, ...] | None = None) -> None:
    """Of those that are attacked."""
    if labels is not None and y.ndim == 2:
        y = y[:, [k for k in labels if -y.shape[1] <= k < y.shape[1]]]
    zeros_and_ones(y, name="multilabel")


def probabilities(y: torch.Tensor) -> None:
    """Raises ValueError unless rows of y are not negative and sum to 1; synchronises."""
    if y.ndim != 2 or y.numel() == 0:
        return
    if y.is_complex():
        raise TypeError(f"y of soft must be (B, C) probabilities; got {y.dtype}")
    coarse = y.dtype in (torch.float16, torch.bfloat16)
    rows = y.to(torch.promote_types(y.dtype, torch.float32))
    lowest, total = rows.amin(1), rows.sum(1)
    odd = ~((lowest >= 0) & ((total - 1).abs() <= (_COARSE if coarse else _SUM)))
    if bool(odd.any()):
        low, summed = torch.stack([lowest[odd][0], total[odd][0]]).tolist()
        raise ValueError(
            "y of soft must be probabilities, rows that are not negative and sum to 1; got a row "
            f"with the least {low:.4g} and the sum {summed:.4g}"
        )


def class_labels(y: torch.Tensor, class_weights: torch.Tensor) -> None:
    """Raises for what is no class that has a weight; synchronises."""
    _check_integers(y, name="weighted")
    low, high = _extremes(y)
    if low < 0 or high >= len(class_weights):
        raise ValueError(
            f"y of weighted must lie in [0, {len(class_weights)}), as there are weights; got "
            f"values from {low} to {high}"
        )


def pixel_labels(y: torch.Tensor, fraction: float, ignore_index: int) -> int:
    """The largest class of the pixels that count. Raises for what is no class; synchronises."""
    del fraction
    _check_integers(y, name="segmentation")
    classes = y.long()
    low, high = _extremes(classes.masked_fill(classes == ignore_index, 0))
    if low < 0:
        raise ValueError(
            f"y of segmentation must be a class or ignore_index={ignore_index}; got {low}. Where "
            f"{low} marks pixels that do not count, give ignore_index={low}"
        )
    return high


def indices(labels: Iterable[int]) -> tuple[int, ...]:
    """The labels that multilabel attacks. Raises TypeError for what are no indices."""
    if isinstance(labels, torch.Tensor):
        labels = labels.tolist()
    if isinstance(labels, str | bytes) or not isinstance(labels, Iterable):
        raise TypeError(f"labels must be indices, as in labels=(3,), or None; got {labels!r}")
    given = list(labels)
    if any(isinstance(one, bool) or str(getattr(one, "dtype", "")) == "bool" for one in given):
        raise TypeError(f"labels must be indices, not a mask: give the indices; got {labels!r}")
    if not given:
        raise ValueError("labels must name one label at least, or be None for all; got none")
    try:
        return tuple(operator.index(one) for one in given)
    except TypeError:
        raise TypeError(f"labels must be integers, indices; got {labels!r}") from None


def number(value: object, *, name: str) -> float:
    """Raises TypeError for what is no number."""
    if isinstance(value, torch.Tensor) and value.ndim == 0 and not value.is_complex():
        return float(value)
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a float; got {value!r}")
    return float(value)


def tolerance(value: object) -> float:
    given = number(value, name="tolerance")
    if not 0 <= given < math.inf:
        raise ValueError(f"tolerance must be finite and not negative; got {given}")
    return given


def of_pixels(fraction: object, ignore_index: object) -> dict[str, float | int]:
    """The parameters of segmentation."""
    given = number(fraction, name="fraction")
    ignored = integer(ignore_index, name="ignore_index")
    if not 0 <= given < 1:
        raise ValueError(f"fraction must lie in [0, 1); got {given}")
    return {"fraction": given, "ignore_index": ignored}


def integer(value: object, *, name: str) -> int:
    """Raises TypeError for what is no integer."""
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} must be an integer; got {value!r}") from None


def _check_integers(y: torch.Tensor, *, name: str) -> None:
    if y.is_floating_point() or y.is_complex():
        raise TypeError(f"y of {name} must hold integers, classes; got {y.dtype}: give y.long()")


def _extremes(y: torch.Tensor) -> tuple[int, int]:
    if y.numel() == 0:
        return 0, -1
    low, high = torch.stack(torch.aminmax(y.long())).tolist()
    return low, high


def _shown(value: torch.Tensor) -> str:
    number = value.item()
    return f"{number:.6g}" if isinstance(number, float) else str(number)
