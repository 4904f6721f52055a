"""The named attacks: each fills the settings of `GradientAttack`."""

import torch

from fastadv.attacks.attack import constructor, in_norms
from fastadv.attacks.gradient.attack import GradientAttack, Keep
from fastadv.attacks.gradient.slots import RandomStart
from fastadv.elements import radius_of
from fastadv.losses import LossFunction, LossName
from fastadv.objective import Objective
from fastadv.threat_model import ThreatModel, check_threat


@constructor
def fgsm(
    threat: ThreatModel,
    *,
    loss: LossName | LossFunction | Objective = "ce",
    kappa: float = 0.0,
    label_smoothing: float = 0.0,
    eot: int = 1,
    sparsity: float | None = None,
    keep: Keep = "first_success",
    seed: int = 0,
) -> GradientAttack:
    """FGSM: one step of length eps, x + eps * sign(g) in L-infinity, clipped to bounds.

    Arguments as in `pgd`. Example: `fastadv.fgsm(fastadv.Linf(8 / 255))(model, x, y)`.
    Source: Goodfellow et al. 2015, arXiv:1412.6572.
    """
    check_threat(threat)
    return GradientAttack(
        "fgsm",
        threat,
        steps=1,
        step_size=radius_of(threat),
        loss=loss,
        kappa=kappa,
        label_smoothing=label_smoothing,
        eot=eot,
        sparsity=sparsity,
        keep=keep,
        seed=seed,
    )


@constructor
def rfgsm(
    threat: ThreatModel,
    *,
    steps: int = 1,
    step_size: float | torch.Tensor | None = None,
    restarts: int = 1,
    loss: LossName | LossFunction | Objective = "ce",
    kappa: float = 0.0,
    label_smoothing: float = 0.0,
    eot: int = 1,
    keep: Keep = "first_success",
    seed: int = 0,
) -> GradientAttack:
    """R-FGSM: x + step_size * (random signs), then `steps` steps of step_size; L-infinity only.

    step_size: eps / 2 if None, so that one step ends on the eps-ball. Other arguments as in `pgd`.
    Example: `fastadv.rfgsm(fastadv.Linf(8 / 255))(model, x, y)`.
    Source: Tramer et al. 2018, arXiv:1705.07204, section 4.1.
    """
    check_threat(threat)
    if threat.norm != "linf":
        raise ValueError(f"rfgsm is defined for Linf only; got {threat!r}: use pgd")
    return GradientAttack(
        "rfgsm",
        threat,
        steps=steps,
        step_size=step_size,
        restarts=restarts,
        random_start="sign",
        loss=loss,
        kappa=kappa,
        label_smoothing=label_smoothing,
        eot=eot,
        keep=keep,
        seed=seed,
    )


@constructor
def bim(
    threat: ThreatModel,
    *,
    steps: int = 10,
    step_size: float | torch.Tensor | None = None,
    loss: LossName | LossFunction | Objective = "ce",
    kappa: float = 0.0,
    label_smoothing: float = 0.0,
    eot: int = 1,
    sparsity: float | None = None,
    keep: Keep = "first_success",
    seed: int = 0,
) -> GradientAttack:
    """BIM, I-FGSM: `pgd` from x itself, without a random start. Arguments as in `pgd`.

    Example: `fastadv.bim(fastadv.Linf(8 / 255), steps=10)(model, x, y)`.
    Source: Kurakin et al. 2017, arXiv:1607.02533.
    """
    return GradientAttack(
        "bim",
        threat,
        steps=steps,
        step_size=step_size,
        loss=loss,
        kappa=kappa,
        label_smoothing=label_smoothing,
        eot=eot,
        sparsity=sparsity,
        keep=keep,
        seed=seed,
    )


@constructor
@in_norms("linf", "l2", "l1", "l0")
def pgd(
    threat: ThreatModel,
    *,
    steps: int = 10,
    step_size: float | torch.Tensor | None = None,
    restarts: int = 1,
    random_start: bool | RandomStart = True,
    clamp_start: bool = True,
    loss: LossName | LossFunction | Objective = "ce",
    kappa: float = 0.0,
    label_smoothing: float = 0.0,
    eot: int = 1,
    sparsity: float | None = None,
    guard: float = 0.0,
    keep: Keep = "first_success",
    seed: int = 0,
) -> GradientAttack:
    """PGD: x_adv <- P(x_adv + step_size * d(g)), P the projection onto eps-ball and bounds.

    d(g) is sign(g) in L-infinity, g / ||g||_2 in L2, in L1 the signs of the largest entries over
    their number, in L0 g / ||g||_1, of which P keeps the eps entries that matter most. threat:
    `Linf`, `L2`, `L1` or `L0`. step_size: input units, float or (B,); None is 2.5 * eps / steps
    (Madry et al.), in L1 eps / 4, in L0 300 eps. restarts: random starts a sample; the first that
    fools the model counts. random_start: False, True ("uniform") or a kind: "gaussian", "sphere"
    (L2), "sign" (L-infinity). clamp_start=False leaves the start outside bounds where it falls
    there. loss: "ce", "margin" (C&W, with kappa: an example counts as found once its margin reaches
    kappa), "dlr", "difference" (targeted), "kl" (TRADES), a callable (logits, y) to (B,), or a
    `fastadv.Objective`, for models that are no plain classifiers. eot: forward passes averaged a
    step; on a random model eot=1 stops at one lucky draw. sparsity: share of entries an L1 step
    moves, of those that may; None is 0.05. guard: added to ||g||_2 in L2 before dividing. keep:
    "first_success" (a clean-wrong sample is x, a fooled one its first success, any other the last
    iterate of its restart of highest loss), "last", or "best" (highest loss over all steps). seed:
    of all randomness.

    Example: `fastadv.pgd(fastadv.Linf(8 / 255), steps=50, restarts=10)(model, x, y)`.
    Source: Madry et al. 2018, arXiv:1706.06083, section 2.1; L0: Croce and Hein 2019,
    arXiv:1909.05040, section 4.
    """
    return GradientAttack(
        "pgd",
        threat,
        steps=steps,
        step_size=step_size,
        restarts=restarts,
        random_start=random_start,
        clamp_start=clamp_start,
        loss=loss,
        kappa=kappa,
        label_smoothing=label_smoothing,
        eot=eot,
        sparsity=sparsity,
        guard=guard,
        keep=keep,
        seed=seed,
    )


@constructor
def mifgsm(
    threat: ThreatModel,
    *,
    steps: int = 10,
    step_size: float | torch.Tensor | None = None,
    decay: float = 1.0,
    loss: LossName | LossFunction | Objective = "ce",
    kappa: float = 0.0,
    label_smoothing: float = 0.0,
    eot: int = 1,
    sparsity: float | None = None,
    keep: Keep = "first_success",
    seed: int = 0,
) -> GradientAttack:
    """MI-FGSM: `bim` along m <- decay * m + g / mean|g| in place of g.

    step_size: eps / steps if None. Other arguments as in `pgd`.
    Example: `fastadv.mifgsm(fastadv.Linf(8 / 255))(model, x, y)`.
    Source: Dong et al. 2018, arXiv:1710.06081.
    """
    return GradientAttack(
        "mifgsm",
        threat,
        steps=steps,
        step_size=step_size,
        loss=loss,
        kappa=kappa,
        label_smoothing=label_smoothing,
        eot=eot,
        decay=decay,
        sparsity=sparsity,
        keep=keep,
        seed=seed,
    )
