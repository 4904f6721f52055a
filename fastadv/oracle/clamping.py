"""Models that clamp their input: how the lost gradient shows, and where to differentiate then.

Of `x.clamp(0, 1)` at x = 0 the gradient is 0 since PyTorch 2.14, and was 1 before; of `hardtanh`
and `relu` it has always been 0. Many pixels lie there, and no attack would ever move them.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from fastadv.ops import bound_counts, doubles
from fastadv.ops.bound_counts import Bounds, Counts, at_bounds

Gradient = Callable[[torch.Tensor], torch.Tensor]

# of the range of the bounds: what lies as near lies at a bound, also after the round trip through
# a normalisation; nor is an entry moved further, where its dtype resolves as little
_MOST = 2.0**-20
_FINE = (torch.float64, torch.float32)
_NEARLY_ALL = 10  # but for one in so many
_FAINT = 0.02  # of the mean inside: x^2 has less in half precision, one rounding from 0


class Evidence(NamedTuple):
    """What the gradients of a batch say of the lower and the upper bound, (2, B) bool.

    kept: entries of the sample lie there, where the batch has its gradient. lost: entries lie
    there, nearly none of which has a gradient, here and in the whole batch, and nearly all entries
    inside have one.
    """

    kept: Any
    lost: Any


def evidence(grad: torch.Tensor, x: torch.Tensor, bounds: Bounds) -> Evidence:
    """What `grad`, the input gradient at x, (B, ...), says of each sample; no synchronisation."""
    counts = counted(grad, x, bounds, loops=False)
    return judged(counts, math.prod(x.shape[1:]))


def counted(grad: torch.Tensor, x: torch.Tensor, bounds: Bounds, *, loops: bool = True) -> Counts:
    """What `judged` asks for; loops: as for `bound_counts.counted`."""
    within = _MOST * (bounds[1] - bounds[0])
    return bound_counts.counted(grad, x, bounds, within=within, loops=loops)


def judged(counts: Counts, size: int) -> Evidence:
    """The evidence of samples of `size` elements; arrays of numpy where the counts are."""
    there, kept, moving, _ = counts
    inside = size - there.sum(0)
    is_dense = _nearly_none(inside - moving + kept.sum(0), inside)
    # of the whole batch: a model that crops a border loses all that some samples have there
    is_lost = _nearly_none(kept.sum(1, keepdims=True), there.sum(1, keepdims=True))
    is_there = there > 0
    lost = is_there & is_lost & is_dense & _nearly_none(kept, there)
    return Evidence(is_there & ~is_lost, lost)


def _nearly_none(part: Any, whole: Any) -> Any:
    return part * _NEARLY_ALL <= whole


def moved_inside(x: torch.Tensor, bounds: Bounds, amount: float) -> torch.Tensor:
    """x, (B, ...), with the entries that lie at a bound moved to where they are `amount` inside."""
    at_low, at_high = at_bounds(x, bounds, amount)
    moved = x.masked_fill(at_low, bounds[0] + amount)
    return moved.masked_fill_(at_high, bounds[1] - amount)


def gradient_of(logits: torch.Tensor, leaf: torch.Tensor, *, scale: float = 1.0) -> torch.Tensor:
    """Of a weighted sum of the logits, (B, ...): no loss, which may be flat where a model is
    confident."""
    shape = logits.shape[1:]
    weights = torch.linspace(
        -scale, scale, shape.numel(), dtype=logits.dtype, device=leaf.device
    ).view(shape)
    (grad,) = torch.autograd.grad(logits, leaf, weights.expand_as(logits), allow_unused=True)
    return torch.zeros_like(leaf) if grad is None else grad


def lost_at_bounds(gradient: Gradient, x: torch.Tensor, bounds: Bounds) -> float:
    """The least amount by which entries at a bound must be moved inside to have a gradient.

    0.0: they have one, or moving them gives them none, so that the model does not clamp. Amounts
    are tried from one rounding of x at its bounds up to 2^-20 of the range; in half precision,
    where that is nothing, one rounding, 2^-11 or 2^-8 of it. gradient: x -> the input gradient
    there; it is asked for at x and for each amount. Synchronises.
    """
    before = gradient(x)
    rows = slice(None), *[None] * (x.ndim - 1)
    at_low, at_high = at_bounds(x, bounds, _MOST * (bounds[1] - bounds[0]))
    at_bound = at_low | at_high
    lost = at_bound & (before == 0) & evidence(before, x, bounds).lost.any(0)[rows]
    inside = before.abs().masked_fill(at_bound, 0).reshape(len(x), -1)
    inside = inside.to(doubles.widest(x))
    faint = (_FAINT * inside.sum(1) / (inside != 0).sum(1).clamp(min=1)).to(before.dtype)
    for amount in _amounts(x.dtype, bounds):
        after = gradient(moved_inside(x, bounds, amount))
        found = lost & (after.abs() > faint[rows])
        counts = (mask.reshape(len(x), -1).sum(1) for mask in (found, lost))
        if bool(_most(*counts).any()):
            return amount
    return 0.0


def _most(found: torch.Tensor, lost: torch.Tensor) -> torch.Tensor:
    return (lost > 0) & (2 * found >= lost)


def _amounts(dtype: torch.dtype, bounds: Bounds) -> list[float]:
    """From the rounding of the dtype at the bounds up; a model may compute in float32 whatever its
    input is, or normalise first, which takes some bits away."""
    size = max(bounds[1] - bounds[0], abs(bounds[0]), abs(bounds[1]))
    if dtype not in _FINE:
        return [torch.finfo(dtype).eps / 2 * size]
    kinds = {dtype, torch.float32}
    return sorted(torch.finfo(kind).eps / 2 * 4**k * size for kind in kinds for k in range(3))
