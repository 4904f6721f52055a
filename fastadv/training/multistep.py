"""Multi-step methods: PGD adversarial training, TRADES and MART."""

import functools
from dataclasses import KW_ONLY, dataclass
from typing import cast

import torch

from fastadv import outputs
from fastadv.isolation import Model
from fastadv.ops import layout
from fastadv.ops.noise import start
from fastadv.region import Region
from fastadv.training.by_objective import ObjectiveStep
from fastadv.training.craft import Ascent, BNPolicy
from fastadv.training.step import CraftedStep
from fastadv.training.weight_loss import WeightLoss, mart, trades

_START_NOISE = 0.001  # standard deviation, in input units: TRADES' and MART's own
# of radii of elements in L-infinity, whose units 0.001 may be nothing in: as 0.001 is of eps 0.031,
# the authors' radius
_SHARE_OF_RADII = 0.001 / 0.031


@dataclass(eq=False, repr=False)
class PGDAT(ObjectiveStep):
    """CE(f(x_adv), y), x_adv from `steps` fused PGD steps out of a uniform start in the eps-ball.

    step_size: in input units, 2.5 eps / steps if None. random_start=False starts at x. clamp_start:
    clamp the start into the bounds before the first gradient. Costs 2 steps + 3 units (PGD-10: 23;
    code that lets backward fill weight gradients while crafting: 33). At large radii
    (MNIST, eps 0.3) give it `eps_warmup`: without one it stays at the constant prediction. loss: an
    objective in place of CE; other arguments as in `CraftedStep`.

    Example: `loss = fastadv.training.PGDAT(fastadv.Linf(8 / 255), steps=10).loss(model, x, y)`.
    Source: Madry et al. 2018, arXiv:1706.06083.
    """

    _: KW_ONLY
    steps: int = 10
    step_size: float | None = None
    random_start: bool = True
    clamp_start: bool = True

    def _random_start(
        self, x: torch.Tensor, ids: torch.Tensor, eps: float, region: Region | None
    ) -> torch.Tensor:
        if not self.random_start:
            return x.clone(memory_format=torch.preserve_format)
        return self._uniform_start(x, ids, eps, region, clamp=self.clamp_start)

    def _ascent(self, eps: float) -> Ascent:
        step = self._scaled(self.step_size, default=2.5 / self.steps)
        return Ascent(self.threat, self.steps, step, eps)


@dataclass(eq=False, repr=False)
class TRADES(CraftedStep):
    """CE(f(x), y) + beta * KL(f(x) || f(x_adv)), x_adv from `steps` fused steps up that divergence.

    step_size: in input units, eps / 4 if None. The craft starts at x + 0.001 * n, n normal, with
    bn="eval" as the authors have it. The clean probabilities are computed once: 2 steps + 7
    units, 27 for 10 steps where the authors' code takes 39. Where elements have radii of their own,
    n is scaled by eps / 31 in L-infinity, as 0.001 is at the authors' radius, and by 0.001 * eps in
    L2. Unlike the authors' script, running statistics see the clean batch once a step, not twice.

    Example: `loss = fastadv.training.TRADES(fastadv.Linf(0.031), beta=6.0).loss(model, x, y)`.
    Source: Zhang et al. 2019, arXiv:1901.08573.
    """

    _: KW_ONLY
    steps: int = 10
    step_size: float | None = None
    beta: float = 6.0
    bn: BNPolicy = "eval"

    def _random_start(
        self, x: torch.Tensor, ids: torch.Tensor, eps: float, region: Region | None
    ) -> torch.Tensor:
        return _gaussian_start(self, x, ids, eps, region)

    def _ascent(self, eps: float) -> Ascent:
        step = self._scaled(self.step_size, default=0.25)
        return Ascent(self.threat, self.steps, step, eps, loss="kl")

    def _reference(self, model: Model, x: torch.Tensor) -> torch.Tensor:
        clean = outputs.logits_in(model(x), x)
        return clean.softmax(1, dtype=layout.compute_dtype(clean))

    def _weight_loss(self) -> WeightLoss:
        return functools.partial(trades, beta=self.beta, label_smoothing=self.label_smoothing)


@dataclass(eq=False, repr=False)
class MART(CraftedStep):
    """BCE(f(x_adv), y) + beta * KL(f(x) || f(x_adv)) * (1 - f(x)_y): errors count more.

    step_size: in input units, eps / 4 if None. The craft ascends the cross-entropy from
    x + 0.001 * n (radii of elements: as in `TRADES`), with bn="eval" as the authors have it;
    2 steps + 6 units.

    Example: `loss = fastadv.training.MART(fastadv.Linf(8 / 255), beta=5.0).loss(model, x, y)`.
    Source: Wang et al. 2020, ICLR, "Improving adversarial robustness requires revisiting
    misclassified examples".
    """

    _: KW_ONLY
    steps: int = 10
    step_size: float | None = None
    beta: float = 5.0
    bn: BNPolicy = "eval"

    def _random_start(
        self, x: torch.Tensor, ids: torch.Tensor, eps: float, region: Region | None
    ) -> torch.Tensor:
        return _gaussian_start(self, x, ids, eps, region)

    def _ascent(self, eps: float) -> Ascent:
        step = self._scaled(self.step_size, default=0.25)
        return Ascent(self.threat, self.steps, step, eps)

    def _weight_loss(self) -> WeightLoss:
        return functools.partial(mart, beta=self.beta, label_smoothing=self.label_smoothing)


def _gaussian_start(
    step: CraftedStep, x: torch.Tensor, ids: torch.Tensor, eps: float, region: Region | None
) -> torch.Tensor:
    radii = region.eps if region is not None and step.threat.norm == "linf" else None
    normals = functools.partial(
        start.random_start,
        eps=eps,
        seed=step.seed,
        sample_ids=ids,
        draw=step.draw,
        kind=cast(start.Kind, f"{step.threat.norm}_gaussian"),
        bounds=None,
    )
    if region is None or radii is None:
        box = None if region is None else region.start_box(x, clamps=False)
        return normals(x, scale=_START_NOISE, box=box)
    noise = normals(torch.zeros_like(x), scale=_SHARE_OF_RADII)
    return region.masked((x + noise * radii).to(x.dtype), x)
