"""Fused adversarial attacks and training for PyTorch."""

import importlib.util

if importlib.util.find_spec("fastadv.kernels") is None:
    raise ImportError(
        "fastadv/kernels is not a package here: this copy of the source lost its symbolic link to "
        "kernels/ (zip archives and Windows checkouts do). Install it, and it works: pip install ."
    )

from fastadv import ops, training
from fastadv.attacks import (
    Attack,
    AttackResult,
    apgd_ce,
    apgd_dlr,
    apgd_t,
    bim,
    fab,
    fab_t,
    fgsm,
    mifgsm,
    pgd,
    rfgsm,
    square,
)
from fastadv.attacks.call.prepared import release
from fastadv.diagnostics import AttackWarning, ExecutionWarning
from fastadv.ensemble import autoattack
from fastadv.evaluation import Report, evaluate, robustness_curve
from fastadv.execution import Execution
from fastadv.threat_model import L1, L2, Linf, contains, start_point
from fastadv.version import __version__ as __version__
from fastadv.wrappers import BPDA, Normalized

__all__ = [
    "BPDA",
    "L1",
    "L2",
    "Attack",
    "AttackResult",
    "AttackWarning",
    "Execution",
    "ExecutionWarning",
    "Linf",
    "Normalized",
    "Report",
    "apgd_ce",
    "apgd_dlr",
    "apgd_t",
    "autoattack",
    "bim",
    "contains",
    "evaluate",
    "fab",
    "fab_t",
    "fgsm",
    "mifgsm",
    "ops",
    "pgd",
    "release",
    "rfgsm",
    "robustness_curve",
    "square",
    "start_point",
    "training",
]
