"""What a crafted batch is worth: the losses of the weights, and the model they may call."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F

from fastadv import losses, outputs
from fastadv.isolation import Model
from fastadv.threat_model import ThreatModel
from fastadv.training.craft import Differentiate, directly, inner_module


class Crafted(NamedTuple):
    """One crafted batch. x, x_adv: (B, ...); y: (B,).

    eps: the radius after warm-up. sample_ids, draw, seed: the keys of what else is drawn for it;
    draw: an integer, or (B,) integers on the device where the step is recorded as a graph. threat:
    whose ball x_adv was looked for in. differentiate: how input gradients are taken; where the
    model clamps, not at entries that lie at a bound.
    """

    x: torch.Tensor
    x_adv: torch.Tensor
    y: torch.Tensor
    eps: float
    sample_ids: torch.Tensor
    draw: int | torch.Tensor
    seed: int
    threat: ThreatModel
    differentiate: Differentiate = directly

    @property
    def host_seed(self) -> int:
        """For torch's own generators; a graph has its own, which it moves on by itself."""
        return self.seed + self.draw if isinstance(self.draw, int) else self.seed


class Reduced:
    """A model whose first call goes through its data-parallel wrapper, the others past it.

    DistributedDataParallel prepares its one all-reduce and broadcasts buffers at each call of the
    wrapper; a second call before the backward would write buffers that the first one's graph needs.
    """

    def __init__(self, first: Model, others: Model) -> None:
        self.first = first
        self.others = others
        self.is_called: bool = False

    @classmethod
    def of(cls, model: Model) -> "Reduced":
        return cls(model, inner_module(model))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        model = self.others if self.is_called else self.first
        self.is_called = True
        logits = outputs.logits_in(model(x), x)
        losses.check_logits(logits, x)
        return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


# (model, batch) -> the scalar that the weights descend
WeightLoss = Callable[[Reduced, Crafted], torch.Tensor]


class Modifier(Protocol):
    """Changes what the weights descend, whatever the method: `AWP`, `GradAlign`, `CleanMixing`."""

    def __call__(self, objective: WeightLoss, model: Reduced, batch: Crafted) -> torch.Tensor: ...


def modified(objective: WeightLoss, modifiers: Sequence[Modifier]) -> WeightLoss:
    """`objective` inside all modifiers, the first innermost."""
    for modifier in modifiers:
        objective = functools.partial(modifier, objective)
    return objective


def cross_entropy(model: Reduced, batch: Crafted, *, label_smoothing: float = 0.0) -> torch.Tensor:
    """Mean cross-entropy of the adversarial samples."""
    return F.cross_entropy(model(batch.x_adv), batch.y, label_smoothing=label_smoothing)


def trades(
    model: Reduced, batch: Crafted, *, beta: float, label_smoothing: float = 0.0
) -> torch.Tensor:
    """CE(f(x), y) + beta * KL(softmax f(x) || softmax f(x_adv)), gradients through both sides."""
    clean, adversarial = model(batch.x), model(batch.x_adv)
    natural = F.cross_entropy(clean, batch.y, label_smoothing=label_smoothing)
    robust = F.kl_div(adversarial.log_softmax(1), clean.softmax(1), reduction="batchmean")
    return natural + beta * robust


_MART_GUARD = 1e-12  # the authors': log(0) where a probability underflows


def mart(
    model: Reduced, batch: Crafted, *, beta: float, label_smoothing: float = 0.0
) -> torch.Tensor:
    """BCE(f(x_adv), y) + beta * KL(p || p_adv) * (1 - p_y), the boosted cross-entropy of MART."""
    p, logits = model(batch.x).softmax(1), model(batch.x_adv)
    p_adv = logits.softmax(1)
    others = p_adv.scatter(1, batch.y[:, None], 0.0)
    boosted = F.cross_entropy(logits, batch.y, label_smoothing=label_smoothing)
    boosted = boosted - (1.0001 - others.amax(1) + _MART_GUARD).log().mean()
    divergence = F.kl_div((p_adv + _MART_GUARD).log(), p, reduction="none").sum(1)
    p_own = p.gather(1, batch.y[:, None])[:, 0]
    return boosted + beta * (divergence * (1.0000001 - p_own)).mean()
