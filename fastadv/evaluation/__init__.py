"""Robust accuracy over data sets: streamed, checkpointed, reported with all that defines it."""

from fastadv.evaluation.accuracy import evaluate
from fastadv.evaluation.curve import Curve
from fastadv.evaluation.display import Status
from fastadv.evaluation.distances import DistanceReport
from fastadv.evaluation.radii import at_radius
from fastadv.evaluation.report import Report
from fastadv.evaluation.sweep import robustness_curve

__all__ = [
    "Curve",
    "DistanceReport",
    "Report",
    "Status",
    "at_radius",
    "evaluate",
    "robustness_curve",
]


def __dir__() -> list[str]:
    return sorted(__all__)
