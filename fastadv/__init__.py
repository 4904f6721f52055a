"""Fused adversarial attacks and training for PyTorch."""

import importlib
import importlib.util
from typing import TYPE_CHECKING

if importlib.util.find_spec("fastadv.kernels") is None:
    raise ImportError(
        "fastadv/kernels is not a package here: this copy of the source lost its symbolic link to "
        "kernels/ (zip archives and Windows checkouts do). Install it, and it works: pip install ."
    )

from fastadv import ops
from fastadv.called_here import attack_here
from fastadv.containment import contains
from fastadv.diagnostics import AttackWarning, ExecutionWarning
from fastadv.execution import Execution
from fastadv.objective import Objective
from fastadv.sparse import L0
from fastadv.starts import start_point
from fastadv.threat_model import L1, L2, Linf
from fastadv.version import __version__ as __version__
from fastadv.wrappers import BPDA, Normalized, Unsquashed

# loaded when they are named: importing them takes longer than all the rest
_ATTACKS = (
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
)
_LAZY = {
    **dict.fromkeys(_ATTACKS, "fastadv.attacks"),
    "autoattack": "fastadv.ensemble",
    "Curve": "fastadv.evaluation",
    "DistanceReport": "fastadv.evaluation",
    "Report": "fastadv.evaluation",
    "evaluate": "fastadv.evaluation",
    "load_run": "fastadv.recipes",
    "release": "fastadv.attacks.call.preparation",
    "robustness_curve": "fastadv.evaluation",
    "to_uint8": "fastadv.quantise",
    "tune": "fastadv.attacks.automatic",
    "evaluation": "fastadv",
    "objectives": "fastadv",
    "training": "fastadv",
}

_PACKAGES = ("attacks", "ensemble")  # not offered by a prompt

if TYPE_CHECKING:
    from fastadv import evaluation as evaluation
    from fastadv import objectives, training
    from fastadv.attacks import (
        Attack,
        AttackResult,
        alma,
        apgd,
        apgd_ce,
        apgd_dlr,
        apgd_t,
        bim,
        cw,
        ddn,
        deepfool,
        fab,
        fab_t,
        fgsm,
        fmn,
        mifgsm,
        minimum_norm,
        pdgd,
        pdpgd,
        pgd,
        rfgsm,
        sigma_zero,
        square,
    )
    from fastadv.attacks.automatic import tune
    from fastadv.attacks.call.preparation import release
    from fastadv.ensemble import autoattack
    from fastadv.evaluation import Curve, DistanceReport, Report, evaluate, robustness_curve
    from fastadv.quantise import to_uint8
    from fastadv.recipes import load_run
else:

    def __getattr__(name: str) -> object:
        home = _LAZY.get(name, __name__ if name in _PACKAGES else None)
        if home is None:
            here = attack_here(name)
            answer = "" if here is None else f": use {here}"
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}{answer}")
        if home == __name__:
            return importlib.import_module(f"{home}.{name}")
        value = globals()[name] = getattr(importlib.import_module(home), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*__all__, *_LAZY, "__version__"})


__all__ = [
    "BPDA",
    "L0",
    "L1",
    "L2",
    "Attack",
    "AttackResult",
    "AttackWarning",
    "Curve",
    "DistanceReport",
    "Execution",
    "ExecutionWarning",
    "Linf",
    "Normalized",
    "Objective",
    "Report",
    "Unsquashed",
    "alma",
    "apgd",
    "apgd_ce",
    "apgd_dlr",
    "apgd_t",
    "autoattack",
    "bim",
    "contains",
    "cw",
    "ddn",
    "deepfool",
    "evaluate",
    "fab",
    "fab_t",
    "fgsm",
    "fmn",
    "load_run",
    "mifgsm",
    "minimum_norm",
    "objectives",
    "ops",
    "pdgd",
    "pdpgd",
    "pgd",
    "release",
    "rfgsm",
    "robustness_curve",
    "sigma_zero",
    "square",
    "start_point",
    "to_uint8",
    "training",
    "tune",
]
