"""FAB with the authors' constructor arguments and attributes."""

import functools

import torch

import fastadv
from fastadv.attacks.auto_pgd.attack import Keep
from fastadv.compat.autoattack.sub_attack import Device, Norm, SubAttack, threat_of
from fastadv.isolation import Model

_RADII = {"Linf": 0.3, "L2": 1.0, "L1": 5.0}  # the authors' where none is given


class FABAttack_PT(SubAttack):
    """`fastadv.fab`, or with targeted=True `fastadv.fab_t`, under the authors' name.

    eps: decides what counts as found, and how far restarts begin; None for 0.3, 1 and 5 in Linf, L2
    and L1. loss_fn: unused, as in the authors' code.
    Example: `FABAttack_PT(model, eps=8 / 255, targeted=True, device="cuda").perturb(x, y)`.
    Source: Croce and Hein 2020, arXiv:1907.02044.
    """

    def __init__(
        self,
        predict: Model,
        norm: Norm = "Linf",
        n_restarts: int = 1,
        n_iter: int = 100,
        eps: float | None = None,
        alpha_max: float = 0.1,
        eta: float = 1.05,
        beta: float = 0.9,
        loss_fn: object = None,
        verbose: bool = False,
        seed: float | None = 0,
        targeted: bool = False,
        device: Device = None,
        n_target_classes: int = 9,
    ) -> None:
        radius = _RADII.get(norm) if eps is None else eps
        threat_of(norm, radius)
        self.predict = predict
        self.norm = norm
        self.n_restarts = n_restarts
        self.n_iter = n_iter
        self.eps = radius
        self.alpha_max = alpha_max
        self.eta = eta
        self.beta = beta
        self.verbose = verbose
        self.seed = seed
        self.targeted = targeted
        self.target_class: int | None = None
        self.device = device
        self.n_target_classes = n_target_classes

    @property
    def target_model(self) -> Model:
        return self.predict

    def settings(self, *, keep: Keep, seed: int) -> fastadv.Attack:
        make = fastadv.fab
        if self.targeted:
            make = functools.partial(fastadv.fab_t, n_target_classes=self.n_target_classes)
        return make(
            threat_of(self.norm, self.eps),
            steps=self.n_iter,
            restarts=self.n_restarts,
            alpha_max=self.alpha_max,
            eta=self.eta,
            beta=self.beta,
            keep=keep,
            seed=seed,
        )

    def perturb(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The closest adversarial examples within eps, x where there is none.

        x: (B, ...) in [0, 1], its dtype is kept. y: (B,) labels. On the attack's device.
        """
        return self._attacked(x, y)
