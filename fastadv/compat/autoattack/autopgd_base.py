"""APGD with the authors' constructor arguments and attributes."""

import functools
from collections.abc import Callable
from typing import Literal

import torch

import fastadv
from fastadv.attacks.auto_pgd.attack import Keep
from fastadv.compat.autoattack.other_utils import Logger
from fastadv.compat.autoattack.sub_attack import Device, Norm, SubAttack, threat_of
from fastadv.isolation import Model

Loss = Literal["ce", "dlr", "dlr-targeted"]  # the last is that of `APGDAttack_targeted`
_MAKERS = {"ce": fastadv.apgd_ce, "dlr": fastadv.apgd_dlr}


def L1_projection(x2: torch.Tensor, y2: torch.Tensor, eps1: float) -> torch.Tensor:
    """What to add to the perturbation y2 so that x2 + y2 is projected onto L1 ball and [0, 1].

    Example: `delta = delta + L1_projection(x, delta, 12.0)`.
    """
    return fastadv.L1(eps1).project(x2 + y2, x2) - x2 - y2


class APGDAttack(SubAttack):
    """`fastadv.apgd_ce` and `fastadv.apgd_dlr` under the authors' names; rho is `thr_decr`.

    loss: "ce" or "dlr". use_largereps: L1 only. seed: None for the time. topk, logger: unused.
    Example: `APGDAttack(model, eps=8 / 255, device="cuda").perturb(x, y)`. Source: Croce and Hein
    2020, arXiv:2003.01690; L1: 2021, arXiv:2103.01208.
    """

    _losses: tuple[str, ...] = tuple(_MAKERS)

    def __init__(
        self,
        predict: Model,
        n_iter: int = 100,
        norm: Norm = "Linf",
        n_restarts: int = 1,
        eps: float | None = None,
        seed: float | None = 0,
        loss: Loss = "ce",
        eot_iter: int = 1,
        rho: float = 0.75,
        topk: float | None = None,
        verbose: bool = False,
        device: Device = None,
        use_largereps: bool = False,
        is_tf_model: bool = False,
        logger: Logger | None = None,
    ) -> None:
        if is_tf_model:
            raise NotImplementedError("fastadv attacks PyTorch models only: leave out is_tf_model")
        threat_of(norm, eps)
        self.model = predict
        self.n_iter = n_iter
        self.norm = norm
        self.n_restarts = n_restarts
        self.eps = eps
        self.seed = seed
        self.loss: Loss = loss
        self.eot_iter = eot_iter
        self.thr_decr: float = rho
        self.topk = topk
        self.verbose = verbose
        self.device = device
        self.use_largereps = use_largereps
        self.is_tf_model = is_tf_model
        self.logger = logger

    @property
    def rho(self) -> float:
        return self.thr_decr

    @rho.setter
    def rho(self, rho: float) -> None:
        self.thr_decr = rho

    @property
    def target_model(self) -> Model:
        return self.model

    def settings(self, *, keep: Keep, seed: int) -> fastadv.Attack:
        if self.loss not in self._losses:
            raise ValueError(f"loss must be one of {self._losses}; got {self.loss!r}")
        return self._maker()(
            threat_of(self.norm, self.eps),
            steps=self.n_iter,
            restarts=self.n_restarts,
            rho=self.thr_decr,
            large_radii=self.use_largereps and keep != "best",
            eot=self.eot_iter,
            keep=keep,
            seed=seed,
        )

    def _maker(self) -> Callable[..., fastadv.Attack]:
        return _MAKERS[self.loss]

    def perturb(
        self,
        x: torch.Tensor,
        y: torch.Tensor | None = None,
        best_loss: bool = False,
        x_init: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Adversarial examples, x where none was found; best_loss=True: the points of highest loss.

        x: (B, ...) in [0, 1], its dtype is kept. y: (B,) labels, None for the model's own
        predictions. x_init: the start iterates, of a single restart. On the attack's device.
        """
        return self._attacked(x, y, keep="best" if best_loss else "authors", x_init=x_init)


class APGDAttack_targeted(APGDAttack):
    """`fastadv.apgd_t` under the authors' name: the targeted DLR loss, n_target_classes in turn.

    Other arguments as in `APGDAttack`.
    Example: `APGDAttack_targeted(model, eps=8 / 255, n_target_classes=3).perturb(x, y)`.
    Source: Croce and Hein 2020, arXiv:2003.01690, section 4.
    """

    _losses = ("dlr-targeted",)

    def __init__(
        self,
        predict: Model,
        n_iter: int = 100,
        norm: Norm = "Linf",
        n_restarts: int = 1,
        eps: float | None = None,
        seed: float | None = 0,
        eot_iter: int = 1,
        rho: float = 0.75,
        topk: float | None = None,
        n_target_classes: int = 9,
        verbose: bool = False,
        device: Device = None,
        use_largereps: bool = False,
        is_tf_model: bool = False,
        logger: Logger | None = None,
    ) -> None:
        super().__init__(
            predict,
            n_iter=n_iter,
            norm=norm,
            n_restarts=n_restarts,
            eps=eps,
            seed=seed,
            loss="dlr-targeted",
            eot_iter=eot_iter,
            rho=rho,
            topk=topk,
            verbose=verbose,
            device=device,
            use_largereps=use_largereps,
            is_tf_model=is_tf_model,
            logger=logger,
        )
        self.n_target_classes = n_target_classes

    def _maker(self) -> Callable[..., fastadv.Attack]:
        return functools.partial(fastadv.apgd_t, n_target_classes=self.n_target_classes)

    def perturb(  # type: ignore[override]
        self, x: torch.Tensor, y: torch.Tensor | None = None, x_init: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Adversarial examples, x where none was found; arguments as in `APGDAttack.perturb`."""
        return self._attacked(x, y, x_init=x_init)
