"""Robust accuracy over data sets: streamed, checkpointed, reported with all that defines it."""

from fastadv.evaluation.accuracy import evaluate
from fastadv.evaluation.curve import Curve, robustness_curve
from fastadv.evaluation.display import Status
from fastadv.evaluation.radii import at_radius
from fastadv.evaluation.report import Report

__all__ = ["Curve", "Report", "Status", "at_radius", "evaluate", "robustness_curve"]


def __dir__() -> list[str]:
    return sorted(__all__)
