"""The Square Attack with the authors' constructor arguments and attributes."""

from typing import Literal

import torch

import fastadv
from fastadv.attacks.auto_pgd.attack import Keep
from fastadv.compat.autoattack.sub_attack import Device, Norm, SubAttack, threat_of
from fastadv.isolation import Model


class SquareAttack(SubAttack):
    """`fastadv.square` under the authors' name; resc_schedule is `rescale_schedule`.

    targeted=True and loss="ce" raise NotImplementedError when it is run.
    Example: `SquareAttack(model, eps=8 / 255, n_queries=1000, device="cuda").perturb(x, y)`.
    Source: Andriushchenko et al. 2020, arXiv:1912.00049.
    """

    def __init__(
        self,
        predict: Model,
        norm: Norm = "Linf",
        n_queries: int = 5000,
        eps: float | None = None,
        p_init: float = 0.8,
        n_restarts: int = 1,
        seed: float | None = 0,
        verbose: bool = False,
        targeted: bool = False,
        loss: Literal["margin", "ce"] = "margin",
        resc_schedule: bool = True,
        device: Device = None,
    ) -> None:
        threat_of(norm, eps)
        self.predict = predict
        self.norm = norm
        self.n_queries = n_queries
        self.eps = eps
        self.p_init = p_init
        self.n_restarts = n_restarts
        self.seed = seed
        self.verbose = verbose
        self.targeted = targeted
        self.loss: Literal["margin", "ce"] = loss
        self.rescale_schedule = resc_schedule
        self.device = device

    @property
    def target_model(self) -> Model:
        return self.predict

    def settings(self, *, keep: Keep, seed: int) -> fastadv.Attack:
        if self.targeted or self.loss != "margin":
            raise NotImplementedError(
                "SquareAttack is untargeted and on the margin loss; got "
                f"targeted={self.targeted!r}, loss={self.loss!r}"
            )
        return fastadv.square(
            threat_of(self.norm, self.eps),
            queries=self.n_queries,
            restarts=self.n_restarts,
            p_init=self.p_init,
            rescale=self.rescale_schedule,
            seed=seed,
        )

    def perturb(self, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        """Adversarial examples, x where none was found.

        x: (B, C, H, W) in [0, 1], its dtype is kept. y: (B,) labels, None for the model's own
        predictions. On the attack's device.
        """
        return self._attacked(x, y)
