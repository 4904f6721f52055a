"""The attacks of torchattacks 3.5.1 that are projected gradient ascent, with its arguments."""

import torch

import fastadv
from fastadv.compat.torchattacks.attack import Attack
from fastadv.isolation import Model
from fastadv.kernels.noise import streams
from fastadv.ops.noise import philox, start
from fastadv.ops.steps import linf
from fastadv.threat_model import ThreatModel

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
        return fastadv.start_point(self.threat(), x, seed=self._seed, sample_ids=sample_ids)

    def _settings(self, *, batch: int, seed: int) -> fastadv.Attack:
        return fastadv.bim(self.threat(), steps=1, step_size=self.alpha, keep="last", seed=seed)


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
        return fastadv.bim(
            self.threat(), steps=self.steps, step_size=self.alpha, keep="last", seed=seed
        )


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
        return fastadv.bim(
            self.threat(), steps=self.steps, step_size=self.alpha, keep="last", seed=seed
        )


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
        if not self.random_start:
            return None
        return fastadv.start_point(self.threat(), x, seed=self._seed, sample_ids=sample_ids)

    def _settings(self, *, batch: int, seed: int) -> fastadv.Attack:
        return fastadv.bim(
            self.threat(), steps=self.steps, step_size=self.alpha, keep="last", seed=seed
        )


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
        if not self.random_start:
            return None
        return fastadv.start_point(self.threat(), x, seed=self._seed, sample_ids=sample_ids)

    def _settings(self, *, batch: int, seed: int) -> fastadv.Attack:
        return fastadv.bim(
            self.threat(),
            steps=self.steps,
            step_size=self.alpha,
            eot=self.eot_iter,
            keep="last",
            seed=seed,
        )


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
        return fastadv.bim(
            self.threat(), steps=self.steps, step_size=self.alpha, loss="kl", keep="last", seed=seed
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
