"""Single-step methods: FGSM from a random start (Fast-AT) and from larger noise (N-FGSM)."""

import math
from dataclasses import KW_ONLY, dataclass

import torch

from fastadv.elements import of_elements
from fastadv.region import Region
from fastadv.training import arguments
from fastadv.training.by_objective import ObjectiveStep
from fastadv.training.craft import Ascent


@dataclass(eq=False, repr=False)
class FastAT(ObjectiveStep):
    """CE(f(x_adv), y), x_adv one fused step of size step_size from a uniform start in the eps-ball.

    step_size: in input units, 1.25 eps if None. clamp_start: clamp the start into the bounds before
    the gradient is taken, as the authors do for CIFAR-10 and not for MNIST, where at eps 0.3 it
    alone makes training collapse. Costs 5 units, a unit being one forward, one backward to inputs
    or one of weight gradients (the authors' code: 6). Watch it with `Sentinel`: single-step methods
    can overfit catastrophically. loss: an objective in place of CE; other arguments as in
    `CraftedStep`.

    Example: `loss = fastadv.training.FastAT(fastadv.Linf(8 / 255)).loss(model, x, y)`.
    Source: Wong, Rice and Kolter 2020, arXiv:2001.03994.
    """

    _: KW_ONLY
    step_size: float | None = None
    clamp_start: bool = False

    def _random_start(
        self, x: torch.Tensor, ids: torch.Tensor, eps: float, region: Region | None
    ) -> torch.Tensor:
        return self._uniform_start(x, ids, eps, region, clamp=self.clamp_start)

    def _ascent(self, eps: float) -> Ascent:
        step = self._scaled(self.step_size, default=1.25)
        return Ascent(self.threat, 1, step, eps)


@dataclass(eq=False, repr=False)
class NFGSM(ObjectiveStep):
    """CE(f(x_adv), y), x_adv = clamp(x + eta + step_size * sign(grad)), eta uniform noise.

    noise: the range of eta, in units of eps. step_size: in input units, eps if None. The result is
    not projected onto the eps-ball: its distance reaches noise * eps + step_size. clamp_start:
    clamp x + eta into the bounds before the gradient is taken. Costs 5 units. At MNIST's eps 0.3 it
    collapses: use it at CIFAR-10's radii, and watch it with `Sentinel`. L-infinity only. loss: an
    objective in place of CE.

    Example: `loss = fastadv.training.NFGSM(fastadv.Linf(8 / 255)).loss(model, x, y)`.
    Source: de Jorge et al. 2022, arXiv:2202.01181.
    """

    _: KW_ONLY
    step_size: float | None = None
    noise: float = 2.0
    clamp_start: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        arguments.check_linf(self)

    def _random_start(
        self, x: torch.Tensor, ids: torch.Tensor, eps: float, region: Region | None
    ) -> torch.Tensor:
        return self._uniform_start(x, ids, self.noise * eps, region, clamp=self.clamp_start)

    def _ascent(self, eps: float) -> Ascent:
        step = self._scaled(self.step_size, default=1.0)
        reach = 2 * (self.noise * eps + step)  # a ball that nothing reaches: no projection
        if of_elements(self.threat.eps):
            reach = math.inf  # step and radii may be in different units
        return Ascent(self.threat, 1, step, reach)
