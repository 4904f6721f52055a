"""Attacks of torchattacks 3.5.1 whose direction is not the sign of one gradient."""

import torch

import fastadv
from fastadv.compat.torchattacks.attack import Attack
from fastadv.isolation import Model
from fastadv.kernels.noise import streams
from fastadv.ops.noise import philox
from fastadv.threat_model import ThreatModel


class PGDL2(Attack):
    """Steps of length alpha along g / (||g|| + eps_for_division), in L2.

    g is the gradient of the mean loss, as in torchattacks, so that the guard weighs more in larger
    batches: 0 makes results independent of them. The start is a random direction times a radius
    uniform in [0, eps]. Example: `PGDL2(model, eps=1.0, alpha=0.2)(images, labels)`. Source: Madry
    et al. 2018, arXiv:1706.06083.
    """

    def __init__(
        self,
        model: Model,
        eps: float = 1.0,
        alpha: float = 0.2,
        steps: int = 10,
        random_start: bool = True,
        eps_for_division: float = 1e-10,
        *,
        seed: int = 0,
    ) -> None:
        super().__init__("PGDL2", model, seed=seed)
        self.eps = eps
        self.alpha = alpha
        self.steps = steps
        self.random_start = random_start
        self.eps_for_division = eps_for_division

    def threat(self) -> ThreatModel:
        return fastadv.L2(self.eps)

    def _start(self, x: torch.Tensor, sample_ids: torch.Tensor) -> torch.Tensor | None:
        if not self.random_start:
            return None
        share = philox.uniforms(self._seed, sample_ids, streams.START_RADIUS, 0, 1)[:, 0]
        return fastadv.start_point(
            self.threat(),
            x,
            seed=self._seed,
            sample_ids=sample_ids,
            kind="sphere",
            eps=share * self.eps,
        )

    def _settings(self, *, batch: int, seed: int) -> fastadv.Attack:
        # our gradient is of the summed loss: batch times that of the mean
        return fastadv.pgd(
            self.threat(),
            steps=self.steps,
            step_size=self.alpha,
            random_start=False,
            guard=batch * self.eps_for_division,
            keep="last",
            seed=seed,
        )


class MIFGSM(Attack):
    """Steps of length alpha along m <- decay * m + g / mean|g|, from x, in L-infinity.

    Example: `MIFGSM(model, eps=8 / 255, decay=1.0)(images, labels)`. Source: Dong et al. 2018,
    arXiv:1710.06081.
    """

    def __init__(
        self,
        model: Model,
        eps: float = 8 / 255,
        alpha: float = 2 / 255,
        steps: int = 10,
        decay: float = 1.0,
        *,
        seed: int = 0,
    ) -> None:
        super().__init__("MIFGSM", model, seed=seed)
        self.eps = eps
        self.steps = steps
        self.decay = decay
        self.alpha = alpha

    def _settings(self, *, batch: int, seed: int) -> fastadv.Attack:
        return fastadv.mifgsm(
            self.threat(),
            steps=self.steps,
            step_size=self.alpha,
            decay=self.decay,
            keep="last",
            seed=seed,
        )
