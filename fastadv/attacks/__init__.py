"""Attacks: slot algorithms, and the constructors that name them."""

from fastadv.attacks.attack import Attack
from fastadv.attacks.auto_pgd.attack import apgd, apgd_ce, apgd_dlr, apgd_t
from fastadv.attacks.call.result import AttackResult
from fastadv.attacks.gradient.named import bim, fgsm, mifgsm, pgd, rfgsm
from fastadv.attacks.hyperplane.attack import fab, fab_t
from fastadv.attacks.joint.attack import minimum_norm
from fastadv.attacks.nearest.attack import ddn, fmn
from fastadv.attacks.nearest.boundary import deepfool
from fastadv.attacks.nearest.lagrangian_attack import alma
from fastadv.attacks.nearest.penalty_attack import cw
from fastadv.attacks.nearest.primal_dual_attack import pdgd, pdpgd
from fastadv.attacks.nearest.sparse_attack import sigma_zero
from fastadv.attacks.square_search.attack import square

__all__ = [
    "Attack",
    "AttackResult",
    "alma",
    "apgd",
    "apgd_ce",
    "apgd_dlr",
    "apgd_t",
    "bim",
    "cw",
    "ddn",
    "deepfool",
    "fab",
    "fab_t",
    "fgsm",
    "fmn",
    "mifgsm",
    "minimum_norm",
    "pdgd",
    "pdpgd",
    "pgd",
    "rfgsm",
    "sigma_zero",
    "square",
]


def __dir__() -> list[str]:
    return sorted(__all__)
