"""Figures of robustness: accuracy against eps, accuracies, sheets of examples, losses of restarts.

Each function returns a matplotlib `Figure` of its own, one column of a paper wide (84 mm) with
letters of 7 points or more, and touches no global state of pyplot; `save` writes it as PNG, SVG or
PDF. matplotlib is imported when a figure is made: `pip install "matplotlib>=3.8"`.
"""

from fastadv.plots.accuracy import accuracy_against_eps, accuracy_bars
from fastadv.plots.examples import example_sheet
from fastadv.plots.files import save
from fastadv.plots.restarts import restart_losses

__all__ = ["accuracy_against_eps", "accuracy_bars", "example_sheet", "restart_losses", "save"]


def __dir__() -> list[str]:
    return sorted(__all__)
