"""Fused adversarial attacks and training for PyTorch."""

import importlib.util

if importlib.util.find_spec("fastadv.kernels") is None:
    raise ImportError(
        "fastadv/kernels is not a package here: this copy of the source lost its symbolic link to "
        "kernels/ (zip archives and Windows checkouts do). Install it, and it works: pip install ."
    )

from fastadv import ops, training
from fastadv.attacks import Attack, AttackResult, bim, fgsm, mifgsm, pgd, rfgsm
from fastadv.diagnostics import AttackWarning
from fastadv.evaluation import Report, evaluate
from fastadv.execution import Execution
from fastadv.threat_model import L1, L2, Linf, contains, start_point
from fastadv.wrappers import BPDA, Normalized

__version__ = "0.1.0"
__all__ = [
    "BPDA",
    "L1",
    "L2",
    "Attack",
    "AttackResult",
    "AttackWarning",
    "Execution",
    "Linf",
    "Normalized",
    "Report",
    "bim",
    "contains",
    "evaluate",
    "fgsm",
    "mifgsm",
    "ops",
    "pgd",
    "rfgsm",
    "start_point",
    "training",
]
