"""Checks of what a user hands to an attack; each error names the argument and the remedy."""

import contextlib
import math
from collections.abc import Iterator, Sequence

import torch

from fastadv import diagnostics
from fastadv.attacks.call.extremes import extremes
from fastadv.elements import common_bounds, of_elements
from fastadv.execution import Execution
from fastadv.isolation import Model, module_of
from fastadv.objective import Objective
from fastadv.ops import layout
from fastadv.region import check_broadcasts
from fastadv.threat_model import ThreatModel

_ONE_IMAGE = "If x is one sample without a batch axis, give x[None]"
# of the range of the bounds, by which rounding may leave them: normalised and back in float32, say
ROUNDING = 1e-6


def check_model(model: object) -> None:
    """Raises TypeError for what cannot be called on samples."""
    if not callable(model):
        raise TypeError(f"model must be callable; got {type(model).__name__}")
    if isinstance(model, type):
        raise TypeError(f"model must be a model; got the class {model.__qualname__}: call it")


def check_inside(x: object, threat: ThreatModel) -> torch.Tensor:
    """x as (B, ...) floats inside the bounds of `threat`; clamped, with a warning, if rounding
    alone took it out. Synchronises once, twice where elements have bounds of their own."""
    return check_elements_inside(check_images(x, common_bounds(threat)), threat)


def _remedy_for(x: torch.Tensor) -> str:
    """What to do with numbers that are no floats."""
    if x.dtype in (torch.int32, torch.int64) and x.ndim == 2:
        return (
            "If these are token ids: their embeddings are attacked, embed(ids), with a model that "
            "begins behind them"
        )
    return "Convert 8-bit images with x.float() / 255"


def check_images(x: object, bounds: tuple[float, float] | None) -> torch.Tensor:
    """`check_inside` of bounds that are the same for all elements."""
    if not isinstance(x, torch.Tensor):
        raise TypeError(
            f"x must be a torch.Tensor of shape (B, ...); got {type(x).__name__}: give "
            "torch.as_tensor(x)"
        )
    if not x.is_floating_point():
        raise TypeError(f"x must be a floating-point tensor; got {x.dtype}. {_remedy_for(x)}")
    if x.ndim == 0:
        raise ValueError("x must have a batch dimension, (B, ...); got a scalar")
    if x.numel() == 0:
        return x
    low, high = extremes(x)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("x has NaN or infinite values")
    if bounds is None or (low >= bounds[0] and high <= bounds[1]):
        return x
    beyond, width = max(bounds[0] - low, high - bounds[1]), bounds[1] - bounds[0]
    width = width if math.isfinite(width) else 0.0  # no range that rounding would be a part of
    if beyond > ROUNDING * width * (1 + 1e-9):  # 1e-6 in float64 is itself rounded
        digits = 6 if beyond > 1e-3 * width else 9
        raise ValueError(
            f"x must lie in bounds {bounds}; got values from {low:.{digits}g} to {high:.{digits}g},"
            f" {beyond:.3g} beyond. Give inputs in pixel units and wrap a model of normalised "
            "inputs in fastadv.Normalized, or set the threat model's bounds"
        )
    return _rounded_inside(x, *bounds)


def _rounded_inside(
    x: torch.Tensor, low: float | torch.Tensor, high: float | torch.Tensor
) -> torch.Tensor:
    inside = x.clamp(low, high)  # type: ignore[arg-type]
    count = int((x != inside).reshape(len(x), -1).any(1).sum())
    diagnostics.warn("rounded_input", count, len(x))
    return inside


def check_elements_inside(x: torch.Tensor, threat: ThreatModel) -> torch.Tensor:
    """`check_inside` of bounds that elements have of their own; x itself where they have none."""
    if threat.bounds is None or not any(map(of_elements, threat.bounds)) or x.numel() == 0:
        return x
    names = ("lo of bounds", "hi of bounds")
    sides = []
    for name, side in zip(names, threat.bounds, strict=True):
        if isinstance(side, torch.Tensor) and of_elements(side):
            check_broadcasts(name, side, x)
        sides.append(torch.as_tensor(side, dtype=layout.compute_dtype(x), device=x.device))
    low, high = sides
    beyond = torch.maximum(low - x, x - high)
    if not bool((beyond > 0).any()):
        return x
    width = (high - low).nan_to_num(posinf=0.0)  # no range that rounding would be a part of
    outside = beyond > ROUNDING * width * (1 + 1e-6)  # itself rounded, in float32
    if bool(outside.any()):
        where = outside.nonzero()[0].tolist()
        first = tuple(where)
        raise ValueError(
            f"x must lie in the bounds of its elements; {int(outside.sum())} of {x.numel()} values "
            f"do not, the first at {where}: {float(x[first]):.9g}, {float(beyond[first]):.3g} "
            "beyond"
        )
    return _rounded_inside(x, low.to(x.dtype), high.to(x.dtype))


def check_device(model: Model, x: torch.Tensor) -> None:
    """Raises ValueError if no parameter of the model is on the device of x."""
    module = module_of(model)
    if module is None or any(p.device == x.device for p in module.parameters()):
        return  # as a rule at the first
    devices = {p.device for p in module.parameters()}
    offloaded = any(device.type == "meta" for device in devices)
    if devices and not offloaded:
        theirs = ", ".join(sorted(str(device) for device in devices))
        raise ValueError(f"x is on {x.device}, the model on {theirs}: move one to the other")


@contextlib.contextmanager
def explained_dtype(model: Model, x: torch.Tensor) -> Iterator[None]:
    """Name x's dtype in the error of a model that fails because its weights have another one; with
    any other error goes a note where x may lack its batch axis."""
    try:
        yield
    except RuntimeError as error:
        module = module_of(model)
        dtypes = set() if module is None else {p.dtype for p in module.parameters()}
        if dtypes and x.dtype not in dtypes:
            theirs = ", ".join(sorted(str(dtype) for dtype in dtypes))
            raise TypeError(
                f"x is {x.dtype}, the model's parameters are {theirs}: convert x or the model. "
                f"The model failed with: {error}"
            ) from error
        if x.ndim in (2, 3):
            error.add_note(f"x has shape {tuple(x.shape)}. {_ONE_IMAGE}")
        raise


def check_labels(labels: object, x: torch.Tensor, *, name: str) -> torch.Tensor:
    """Labels or targets as (B,) int64 beside x."""
    if not isinstance(labels, torch.Tensor):
        raise TypeError(f"{name} must be a (B,) integer tensor; got {type(labels).__name__}")
    if labels.dtype not in (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8):
        raise TypeError(
            f"{name} must be an integer tensor of class indices; got {labels.dtype}. What is no "
            "class, as probabilities or numbers, is judged by a fastadv.Objective, which "
            "fastadv.pgd and others take as loss="
        )
    if labels.shape != x.shape[:1]:
        hint = f". {_ONE_IMAGE} and {name}[None]" if labels.ndim == 0 else ""
        if labels.shape == (1,):
            hint = f". {_ONE_IMAGE}"
        raise ValueError(f"{name} must have shape ({len(x)},); got {tuple(labels.shape)}{hint}")
    if labels.device != x.device:
        raise ValueError(f"{name} must be on the device of x, {x.device}; got {labels.device}")
    return labels.to(torch.int64)


def check_asked(y: object, x: torch.Tensor, objective: Objective) -> torch.Tensor:
    """y as an objective judges by it: any dtype and shape (B, ...), beside x, as it is."""
    if not isinstance(y, torch.Tensor):
        raise TypeError(
            f"y must be a tensor (B, ...), by which {objective!r} judges; got {type(y).__name__}"
        )
    _check_rows("y", y, x)
    return y.detach()


def check_extra(extra: object, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What the model is given beside x, as it is."""
    if isinstance(extra, torch.Tensor) or not isinstance(extra, Sequence):
        raise TypeError(
            "extra must be a tuple of tensors, what the model takes beside x, as in "
            f"extra=(tensor,); got {type(extra).__name__}"
        )
    for index, rows in enumerate(extra):
        if not isinstance(rows, torch.Tensor):
            raise TypeError(f"extra[{index}] must be a tensor; got {type(rows).__name__}")
        _check_rows(f"extra[{index}]", rows, x)
    return tuple(rows.detach() for rows in extra)


def _check_rows(name: str, rows: torch.Tensor, x: torch.Tensor) -> None:
    if rows.shape[:1] != x.shape[:1]:
        raise ValueError(
            f"{name} must have a row a sample, ({len(x)}, ...); got {tuple(rows.shape)}"
        )
    if rows.device != x.device:
        raise ValueError(f"{name} must be on the device of x, {x.device}; got {rows.device}")


def check_range(labels: torch.Tensor, classes: int | None, *, name: str) -> None:
    """Raises ValueError for a label outside [0, classes), None: not known; synchronises once."""
    if labels.numel() == 0:
        return
    low, high = torch.stack(torch.aminmax(labels)).tolist()
    if classes is None and low < 0:
        raise ValueError(f"{name} must not be negative; got {low}")
    if classes is not None and (low < 0 or high >= classes):
        raise ValueError(
            f"{name} must lie in [0, {classes}), the classes of the model; got values from {low} "
            f"to {high}"
        )


def check_sample_ids(sample_ids: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
    """(B,) int64 on the device of x; 0..B-1 if None."""
    if sample_ids is None:
        return torch.arange(len(x), device=x.device)
    if not isinstance(sample_ids, torch.Tensor) or sample_ids.is_floating_point():
        raise TypeError("sample_ids must be a (B,) integer tensor")
    if sample_ids.shape != x.shape[:1]:
        raise ValueError(f"sample_ids must have shape ({len(x)},); got {tuple(sample_ids.shape)}")
    if sample_ids.device not in (x.device, torch.device("cpu")):
        raise ValueError(f"sample_ids must be on {x.device} or the CPU; got {sample_ids.device}")
    return sample_ids.to(x.device, torch.int64)


def check_start(x_init: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor | None:
    if x_init is None:
        return None
    if not isinstance(x_init, torch.Tensor) or (x_init.shape, x_init.dtype, x_init.device) != (
        x.shape,
        x.dtype,
        x.device,
    ):
        raise ValueError(
            f"x_init must be a tensor like x, {tuple(x.shape)} {x.dtype} on {x.device}"
        )
    if not bool(x_init.isfinite().all()):
        raise ValueError("x_init has NaN or infinite values")
    return x_init.detach()


def check_start_outside(x_init: torch.Tensor, x: torch.Tensor, mask: torch.Tensor) -> None:
    """Raises ValueError unless x_init is x outside of the mask; synchronises."""
    if bool(((x_init != x) & ~mask).any()):
        raise ValueError(
            "x_init must equal x outside of mask=, where nothing moves: give "
            "torch.where(mask, x_init, x)"
        )


def check_inset(execution: Execution, bounds: tuple[float, float] | None) -> float:
    """The inset to begin with: none where nothing lies at a bound."""
    if not execution.inset or bounds is None:
        return 0.0
    if execution.inset >= (bounds[1] - bounds[0]) / 2:
        raise ValueError(
            f"inset must be less than half of the range of bounds {bounds}; got {execution.inset}"
        )
    return execution.inset


def in_channels_last(
    x: torch.Tensor, x_init: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None, torch.memory_format | None]:
    """(x, x_init, the format that results must be put back into, None for that of x): images laid
    out once, so that no pass has to."""
    wanted = torch.channels_last
    if x.ndim != 4 or x.is_contiguous(memory_format=wanted):
        return x, x_init, None
    if x_init is not None:
        x_init = x_init.contiguous(memory_format=wanted)
    return x.contiguous(memory_format=wanted), x_init, torch.contiguous_format
