"""Robust accuracy over data sets: streamed, checkpointed, reported with all that defines it."""

from fastadv.evaluation.accuracy import evaluate
from fastadv.evaluation.report import Report

__all__ = ["Report", "evaluate"]
