"""The attacks of torchattacks 3.5.1 that step along signs of gradients, with its arguments."""

import torch

import fastadv
from fastadv.compat.torchattacks.attack import Attack
from fastadv.isolation import Model
from fastadv.losses import LossName
from fastadv.ops.noise import start
from fastadv.ops.steps import linf

_TPGD_DEVIATION = 0.001  # of the start of TPGD: the gradient of KL at x itself is zero


class FGSM(Attack):
    """One step of length eps from x, in L-infinity.

    Example: `FGSM(model, eps=8 / 255)(images, labels)`. Source: Goodfellow et al. 2015,
    arXiv:1412.6572.
    """

    def __init__(self, model: Model, eps: float = 8 / 255, *, seed: int = 0) -> None:
        super().__init__("FGSM", model, seed=seed)
        self.eps = eps

    def _settings(self, *, batch: int, seed: int) -> fastadv.Attack:
        return fastadv.fgsm(self.threat(), keep="last", seed=seed)


class FFGSM(Attack):
    """One step of length alpha from a uniform start, in L-infinity.

    Example: `FFGSM(model, eps=8 / 255, alpha=10 / 255)(images, labels)`. Source: Wong et al. 2020,
    arXiv:2001.03994.
    """

    def __init__(
        self, model: Model, eps: float = 8 / 255, alpha: float = 10 / 255, *, seed: int = 0
    ) -> None:
        super().__init__("FFGSM", model, seed=seed)
        self.eps = eps
        self.alpha = alpha

    def _start(self, x: torch.Tensor, sample_ids: torch.Tensor) -> torch.Tensor | None:
        return _uniform_start(self, x, sample_ids)

    def _settings(self, *, batch: int, seed: int) -> fastadv.Attack:
        return _bim(self, self.alpha, 1, seed=seed)


class RFGSM(Attack):
    """Steps of length alpha from x + alpha * (random signs), in L-infinity.

    Example: `RFGSM(model, eps=8 / 255, alpha=2 / 255, steps=10)(images, labels)`. Source: Tramer et
    al. 2018, arXiv:1705.07204.
    """

    def __init__(
        self,
        model: Model,
        eps: float = 8 / 255,
        alpha: float = 2 / 255,
        steps: int = 10,
        *,
        seed: int = 0,
    ) -> None:
        super().__init__("RFGSM", model, seed=seed)
        self.eps = eps
        self.alpha = alpha
        self.steps = steps

    def _start(self, x: torch.Tensor, sample_ids: torch.Tensor) -> torch.Tensor | None:
        noise = start.random_start(
            torch.zeros_like(x), eps=1.0, seed=self._seed, sample_ids=sample_ids, bounds=None
        )
        # in the alpha-ball, which may be wider than the eps-ball
        return linf.linf_step(x, noise, x, step_size=self.alpha, eps=abs(self.alpha))

    def _settings(self, *, batch: int, seed: int) -> fastadv.Attack:
        return _bim(self, self.alpha, self.steps, seed=seed)


class BIM(Attack):
    """Steps of length alpha from x, in L-infinity; steps=0 is min(eps * 255 + 4, 1.25 * eps * 255).

    Example: `BIM(model, eps=8 / 255, alpha=2 / 255, steps=10)(images, labels)`. Source: Kurakin et
    al. 2017, arXiv:1607.02533.
    """

    def __init__(
        self,
        model: Model,
        eps: float = 8 / 255,
        alpha: float = 2 / 255,
        steps: int = 10,
        *,
        seed: int = 0,
    ) -> None:
        super().__init__("BIM", model, seed=seed)
        self.eps = eps
        self.alpha = alpha
        self.steps: int = steps if steps else int(min(eps * 255 + 4, 1.25 * eps * 255))

    def _settings(self, *, batch: int, seed: int) -> fastadv.Attack:
        return _bim(self, self.alpha, self.steps, seed=seed)


class PGD(Attack):
    """Steps of length alpha from a uniform start, in L-infinity.

    Example: `PGD(model, eps=8 / 255, alpha=2 / 255, steps=10)(images, labels)`. Source: Madry et
    al. 2018, arXiv:1706.06083.
    """

    def __init__(
        self,
        model: Model,
        eps: float = 8 / 255,
        alpha: float = 2 / 255,
        steps: int = 10,
        random_start: bool = True,
        *,
        seed: int = 0,
    ) -> None:
        super().__init__("PGD", model, seed=seed)
        self.eps = eps
        self.alpha = alpha
        self.steps = steps
        self.random_start = random_start

    def _start(self, x: torch.Tensor, sample_ids: torch.Tensor) -> torch.Tensor | None:
        return _uniform_start(self, x, sample_ids) if self.random_start else None

    def _settings(self, *, batch: int, seed: int) -> fastadv.Attack:
        return _bim(self, self.alpha, self.steps, seed=seed)


class EOTPGD(Attack):
    """`PGD` along the gradient averaged over eot_iter passes, for models that draw random numbers.

    Example: `EOTPGD(model, eps=8 / 255, eot_iter=2)(images, labels)`. Source: Athalye et al. 2018,
    arXiv:1802.00420; Zimmermann 2019, arXiv:1907.00895.
    """

    def __init__(
        self,
        model: Model,
        eps: float = 8 / 255,
        alpha: float = 2 / 255,
        steps: int = 10,
        eot_iter: int = 2,
        random_start: bool = True,
        *,
        seed: int = 0,
    ) -> None:
        super().__init__("EOTPGD", model, seed=seed)
        self.eps = eps
        self.alpha = alpha
        self.steps = steps
        self.eot_iter = eot_iter
        self.random_start = random_start

    def _start(self, x: torch.Tensor, sample_ids: torch.Tensor) -> torch.Tensor | None:
        return _uniform_start(self, x, sample_ids) if self.random_start else None

    def _settings(self, *, batch: int, seed: int) -> fastadv.Attack:
        return _bim(self, self.alpha, self.steps, eot=self.eot_iter, seed=seed)


class TPGD(Attack):
    """Steps of length alpha up the KL divergence from the clean output, in L-infinity; no labels.

    The start is x + 0.001 * (standard normal). Example: `TPGD(model, eps=8 / 255)(images)`. Source:
    Zhang et al. 2019, arXiv:1901.08573.
    """

    _takes_labels = False

    def __init__(
        self,
        model: Model,
        eps: float = 8 / 255,
        alpha: float = 2 / 255,
        steps: int = 10,
        *,
        seed: int = 0,
    ) -> None:
        super().__init__("TPGD", model, seed=seed)
        self.eps = eps
        self.alpha = alpha
        self.steps = steps

    def _start(self, x: torch.Tensor, sample_ids: torch.Tensor) -> torch.Tensor | None:
        # a radius of 1 cuts nothing off: normals of Philox end at 5.77
        return start.random_start(
            x,
            eps=1.0,
            seed=self._seed,
            sample_ids=sample_ids,
            kind="linf_gaussian",
            scale=_TPGD_DEVIATION,
        )

    def _settings(self, *, batch: int, seed: int) -> fastadv.Attack:
        return _bim(self, self.alpha, self.steps, loss="kl", seed=seed)


def _uniform_start(attack: Attack, x: torch.Tensor, sample_ids: torch.Tensor) -> torch.Tensor:
    return fastadv.start_point(attack.threat(), x, seed=attack._seed, sample_ids=sample_ids)


def _bim(
    attack: Attack, alpha: float, steps: int, *, seed: int, eot: int = 1, loss: LossName = "ce"
) -> fastadv.Attack:
    """What most of these attacks are once they have started: `steps` steps of alpha up the loss."""
    return fastadv.bim(
        attack.threat(), steps=steps, step_size=alpha, eot=eot, loss=loss, keep="last", seed=seed
    )
