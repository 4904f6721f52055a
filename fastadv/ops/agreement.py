"""How far the results of two implementations of an op are apart, and how far they may be."""

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import torch

# elements of a sample up to which an op's tolerance holds; what adds up more may be off by more
TOLERATED_ELEMENTS = 192
_RELATIVE = 1e-6  # beside the tolerance, where there is one: a rounding or two of float32
_ROUNDINGS = 4  # of every input: what sums in another order may do to an ill-conditioned sample


class Result(NamedTuple):
    """A tensor that an op returned or was given: whatever it was given, it may have written."""

    name: str
    value: torch.Tensor


class Difference(NamedTuple):
    """The largest of all results: how much, in which of them, and how much is allowed there."""

    largest: float
    where: str
    allowed: float

    @property
    def is_allowed(self) -> bool:
        return self.largest <= self.allowed


def rows_of(arguments: Sequence[Any], shared: Collection[int]) -> int:
    """How many samples a call has: the length of its shortest tensor that has rows at all.

    shared: positions of the arguments that belong to all samples together.
    """
    return min(len(a) for _, a in _with_rows(arguments, shared))


def elements_of(arguments: Sequence[Any], shared: Collection[int]) -> int:
    """The most elements that a tensor has in a row."""
    return max(math.prod(a.shape[1:]) for _, a in _with_rows(arguments, shared))


def copies(arguments: Sequence[Any], shared: Collection[int], rows: int) -> list[Any]:
    """The arguments for the first `rows` samples, copied with their strides; what is shared, which
    no op writes, as it is.

    A tensor of k rows a sample, as Square's proposals, gives k times as many.
    """
    copied, samples = list(arguments), rows_of(arguments, shared)
    for i, tensor in _with_rows(arguments, shared):
        copied[i] = _copy(tensor[: rows * (len(tensor) // samples)])
    return copied


def results(run: Callable[..., Any], names: Sequence[str], arguments: list[Any]) -> list[Result]:
    """What `run` returns and every tensor that it was given."""
    returned = run(*arguments)
    returned = returned if isinstance(returned, tuple) else (returned,)
    named = [*(("result", value) for value in returned), *zip(names, arguments, strict=True)]
    return [Result(n, value) for n, value in named if isinstance(value, torch.Tensor)]


def round_otherwise(arguments: Sequence[Any], shared: Collection[int], sign: int) -> None:
    """Make every second floating-point number larger by one rounding and the others smaller, in
    place; with sign -1 the other way round."""
    for i, tensor in _with_rows(arguments, shared):
        if tensor.is_floating_point():
            odd = torch.arange(i, i + tensor.numel(), device=tensor.device) % 2
            share = (2 * odd - 1).to(tensor.dtype) * (sign * torch.finfo(tensor.dtype).eps)
            tensor.mul_(share.view(tensor.shape).add_(1.0))


def difference(
    found: Sequence[Result],
    expected: Sequence[Result],
    tolerance: float,
    elements: int = 0,
    otherwise: Sequence[Sequence[Result]] = (),
) -> Difference:
    """Between results of one call. tolerance: 0.0 demands the same bits, but for a NaN's; otherwise
    it is allowed on values up to 1 of samples up to `TOLERATED_ELEMENTS`, and more in proportion.
    otherwise: the expectation of arguments after `round_otherwise`: how far results of a sample
    that is ill-conditioned may be apart.
    """
    allowed = tolerance * max(1.0, elements / TOLERATED_ELEMENTS)
    each = [
        _between(a, b, allowed, [one[k] for one in otherwise])
        for k, (a, b) in enumerate(zip(found, expected, strict=True))
    ]
    return max(each, key=severity)


def severity(one: Difference) -> tuple[bool, float]:
    """What orders differences: one that is not allowed is worse than any that is."""
    return not one.is_allowed, one.largest


def _with_rows(arguments, shared):
    return [
        (i, a) for i, a in enumerate(arguments) if isinstance(a, torch.Tensor) and i not in shared
    ]


def _copy(rows: torch.Tensor) -> torch.Tensor:
    if 0 in rows.stride():  # expanded: several elements lie in one place
        return rows.clone()
    return torch.empty_strided(
        rows.shape, rows.stride(), dtype=rows.dtype, device=rows.device
    ).copy_(rows)


def _between(
    found: Result, expected: Result, tolerance: float, otherwise: Sequence[Result]
) -> Difference:
    """On the CPU, where every type that is needed is to be had."""
    a, b = (one.value.detach().cpu() for one in (found, expected))
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return Difference(math.inf, expected.name, 0.0)
    if not a.is_floating_point():
        tolerance = 0.0
    relative = max(_RELATIVE, torch.finfo(b.dtype).eps) if tolerance else 0.0
    same = (a == b) | (a.isnan() & b.isnan())
    a, b = a.double(), b.double()
    apart = torch.where(same, 0.0, (a - b).abs().nan_to_num(nan=math.inf))
    if not apart.numel() or not apart.any():
        return Difference(0.0, expected.name, tolerance)
    size = torch.where(b.isfinite(), b.abs(), 0.0)
    allowed = tolerance * max(1.0, float(size.max())) + relative * size
    allowed = torch.where(b.isfinite(), allowed, 0.0)
    for other in otherwise:
        spread = (other.value.detach().cpu().double() - b).abs()
        allowed += _ROUNDINGS * spread.nan_to_num(nan=0.0, posinf=0.0)
    worst = int((apart - allowed).argmax())
    return Difference(float(apart.flatten()[worst]), expected.name, float(allowed.flatten()[worst]))
