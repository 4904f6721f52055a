"""What a crafted batch is worth: the losses of the weights, and the model they may call."""

import functools
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F

from fastadv import losses, outputs
from fastadv.elements import Value
from fastadv.isolation import Model
from fastadv.objective import Objective
from fastadv.region import Region
from fastadv.threat_model import ThreatModel
from fastadv.training.craft import HALVES, Differentiate, directly, inner_module
from fastadv.training.with_extra import Extra, with_extra

TrainingLoss = Literal["ce"] | Objective


class Crafted(NamedTuple):
    """One crafted batch. x, x_adv: (B, ...); y: (B,), or what the objective takes.

    Where the x that was given requires a gradient both lead back to it, x_adv as x + a constant.
    eps: the radius after warm-up, or (1, ...) radii of elements. sample_ids, draw, seed: the keys
    of what else is drawn for it; draw: an integer, or (B,) integers on the device where the step is
    recorded as a graph. threat: whose ball x_adv was looked for in. differentiate: how input
    gradients are taken; where the model clamps, not at entries that lie at a bound. objective: by
    which a sample's loss is computed, None for cross-entropy. region: where elements may go, None
    where all may.
    """

    x: torch.Tensor
    x_adv: torch.Tensor
    y: torch.Tensor
    eps: Value
    sample_ids: torch.Tensor
    draw: int | torch.Tensor
    seed: int
    threat: ThreatModel
    differentiate: Differentiate = directly
    objective: Objective | None = None
    region: Region | None = None

    def loss(self, output: torch.Tensor, reduction: Literal["mean", "sum"]) -> torch.Tensor:
        """The plain loss of an output for this batch, a scalar."""
        if self.objective is None:
            return F.cross_entropy(output, self.y, reduction=reduction)
        rows = self.objective.losses(output, self.y)
        return rows.mean() if reduction == "mean" else rows.sum()

    def reaching(self, x: torch.Tensor) -> "Crafted":
        """The same values, whose gradients reach x, the clean samples that require one."""
        # 0 is added, not x_adv - x to x: that rounds, and the model would see another x_adv
        zero = x - x.detach()
        return self._replace(x=self.x + zero, x_adv=self.x_adv + zero)

    def cut_off(self) -> "Crafted":
        """The same values, without what x was computed from."""
        if not self.x.requires_grad:
            return self
        return self._replace(x=self.x.detach(), x_adv=self.x_adv.detach())

    @property
    def host_seed(self) -> int:
        """For torch's own generators; a graph has its own, which it moves on by itself."""
        return self.seed + self.draw if isinstance(self.draw, int) else self.seed


class Reduced:
    """A model whose first call goes through its data-parallel wrapper, the others past it.

    DistributedDataParallel prepares its one all-reduce and broadcasts buffers at each call of the
    wrapper; a second call before the backward would write buffers that the first one's graph needs.
    objective: that of the batch, whose outputs need not be logits. extra: what the model is given
    beside x.
    """

    def __init__(
        self,
        first: Model,
        others: Model,
        objective: Objective | None = None,
        extra: Extra = (),
    ) -> None:
        self.first = first
        self.others = others
        self.objective = objective
        self.extra = extra
        self.is_called: bool = False

    @classmethod
    def of(cls, model: Model, objective: Objective | None = None, extra: Extra = ()) -> "Reduced":
        return cls(model, inner_module(model), objective, extra)

    @property
    def past_wrapper(self) -> Model:
        """What later calls ask, as a function of x."""
        return with_extra(self.others, self.extra)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        model = self.others if self.is_called else self.first
        self.is_called = True
        output = outputs.logits_in(model(x, *self.extra), x)
        if self.objective is None:
            losses.check_logits(output, x)
        else:
            losses.check_rows(output, x)
        return output.float() if output.dtype in HALVES else output


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


def objective_mean(model: Reduced, batch: Crafted) -> torch.Tensor:
    """The mean of an objective's losses of the adversarial samples."""
    return batch.loss(model(batch.x_adv), "mean")


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
