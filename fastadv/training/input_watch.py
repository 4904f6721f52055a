"""Where a training step differentiates its input: moved inside the bounds if the model clamps."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from fastadv import diagnostics, outputs
from fastadv.isolation import Model, restored_generators
from fastadv.ops import doubles
from fastadv.oracle import clamping
from fastadv.reach import every_module
from fastadv.training.arguments import is_distributed
from fastadv.training.craft import FP16_SCALE, BNPolicy, InputGradient, statistics_policy
from fastadv.training.with_extra import of_rows

_LOOKED_AT = 64  # samples of the second look
_UNDECIDED = -1.0  # less than every inset
_APART = 1e-5  # of the range of the bounds: nothing as far from a bound counts as at it


class InputWatch:
    """Sees in the first batch of a step whether the model loses the gradient at the bounds.

    inset: by how much entries that lie at a bound are moved inside wherever the input is
    differentiated; 0.0 if the model keeps the gradient there; None, undecided, until the first
    batch is done. See `fastadv.oracle.clamping`. rounds: whether samples of the first batch left
    the bounds by rounding, so that those of all batches are clamped. bounds: None where there is
    nothing to look at. Once decided, nothing is looked at and nothing synchronises.
    """

    def __init__(
        self, bounds: clamping.Bounds | None, inset: float | None = None, *, rounds: bool = False
    ) -> None:
        self.bounds = bounds
        self.inset = inset
        self.rounds: bool = rounds

    @classmethod
    def restored(cls, bounds: clamping.Bounds | None, state: dict[str, Any]) -> "InputWatch":
        """The one that gave `state`, or where that is older one that has seen nothing."""
        return cls(bounds, state.get("inset"), rounds=state.get("rounds", False))

    def state(self) -> dict[str, Any]:
        """What a resumed step needs, among other things of its own."""
        return {"inset": self.inset, **({"rounds": True} if self.rounds else {})}

    def inside(self, x: torch.Tensor) -> torch.Tensor:
        """x, or where the first batch left the bounds by rounding x clamped."""
        return x.clamp(*self.bounds) if self.rounds and self.bounds is not None else x

    @property
    def is_open(self) -> bool:
        """Whether gradients are still looked at."""
        return self.inset is None and self.bounds is not None

    def close(self) -> None:
        """The first batch is done: what has not shown by now is not looked for."""
        self.inset = self.inset or 0.0

    def take_over(self, other: "InputWatch") -> None:
        """Of the same model: what was found need not be found, and warned of, again."""
        if other.bounds == self.bounds:
            self.inset = other.inset or self.inset
            self.rounds |= other.rounds

    def at(self, x: torch.Tensor) -> torch.Tensor:
        """x, (B, ...), or where the model clamps a copy with entries at the bounds moved inside."""
        if not self.inset or self.bounds is None:
            return x
        return clamping.moved_inside(x.detach(), self.bounds, self.inset)

    def gradient(self, gradient: InputGradient, x: torch.Tensor, model: Model) -> torch.Tensor:
        """gradient(x), or that of the moved x where the model clamps; a `Differentiate`.

        While it is open it synchronises, and a gradient that shows the loss is taken again.
        """
        grad = gradient(self.at(x))
        if self.is_open and self.look(grad, x, model):
            with _unseen(model, "batch", x.device):
                grad = gradient(self.at(x))
        return grad

    def may_tell(self, x: torch.Tensor, model: Model) -> bool:
        """Whether a look at the gradient at x may decide anything; synchronises while open."""
        if not self.is_open or self.bounds is None:
            return False
        low, high = self.bounds
        return bool(_most(float(((x == low) | (x == high)).any()), model, x.device))

    def look(self, grad: torch.Tensor, x: torch.Tensor, model: Model) -> bool:
        """Decide by `grad`, an input gradient of the model at x, if it tells; whether an inset was
        found, of which it warns. Synchronises."""
        assert self.bounds is not None, "nothing lies at no bounds"
        x = _apart(x.detach(), self.bounds)
        kept, lost = clamping.evidence(grad.detach(), x, self.bounds)
        rows = lost.any(0).nonzero()[:_LOOKED_AT, 0]
        known = 0.0 if bool(kept.any()) else _UNDECIDED
        if len(rows):
            with _in_range(x.device):
                known = _found_in(x, rows, self.bounds, model)
        known = _most(known, model, x.device)
        self.inset = None if known == _UNDECIDED else known
        if self.inset:
            diagnostics.warn("clamped_input", len(x), len(x))
        return bool(self.inset)


def _found_in(
    x: torch.Tensor, rows: torch.Tensor, bounds: tuple[float, float], model: Model
) -> float:
    """The inset that the samples of `rows` show, or where the model takes no part of a batch, as
    one that closes over tensors of its size, all of them."""
    try:
        some = x.index_select(0, rows)
        return clamping.lost_at_bounds(probe(of_rows(model, rows)), some, bounds)
    except outputs.OF_SIZES:
        if len(rows) == len(x):
            raise
    return clamping.lost_at_bounds(probe(model), x, bounds)


def _apart(x: torch.Tensor, bounds: tuple[float, float]) -> torch.Tensor:
    """x, where only what is a bound exactly is near it: starts that are not clamped come near by
    chance, and a clamp keeps the gradient of those that lie inside."""
    low, high = bounds
    margin = _APART * (high - low)
    return torch.where((x == low) | (x == high), x, x.clamp(low + margin, high - margin))


def probe(model: Model) -> InputGradient:
    """x -> the input gradient of a weighted sum of the model's logits: in eval mode, without chance
    and without a trace."""

    def gradient(x: torch.Tensor) -> torch.Tensor:
        leaf = x.detach().clone().requires_grad_()
        with _unseen(model, "eval", x.device), torch.enable_grad():
            logits = outputs.logits_in(model(leaf), x)
            half = logits.dtype == torch.float16
            logits = logits.float() if half else logits
        if not logits.requires_grad:
            return torch.zeros_like(x)
        return clamping.gradient_of(logits, leaf, scale=FP16_SCALE if half else 1.0)

    return gradient


@contextlib.contextmanager
def _unseen(model: Model, bn: BNPolicy, device: torch.device) -> Iterator[None]:
    """A pass that no buffer and no random state keeps a trace of."""
    with restored_generators(device, 0), statistics_policy(model, bn):
        yield


def _in_range(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """No autocast to float16: in eval mode a network that has learnt nothing may overflow there."""
    kind = device.type
    if torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16:
        return torch.autocast(kind, enabled=False)
    return contextlib.nullcontext()


def _most(value: float, model: Model, device: torch.device) -> float:
    """The value, or the largest of all ranks where their passes wait for one another: with
    SyncBatchNorm all must make as many. Other ranks decide for themselves."""
    synced = [m for m in every_module(model) if isinstance(m, nn.SyncBatchNorm)]
    if not synced or not is_distributed():
        return value
    most = torch.tensor(value, dtype=doubles.widest(device), device=device)
    group = synced[0].process_group
    torch.distributed.all_reduce(most, op=torch.distributed.ReduceOp.MAX, group=group)
    return most.item()
