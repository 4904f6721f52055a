"""Losses of many restarts of one sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from fastadv.plots.style import COLOURS, INK, SMALL, entitle, new_figure, tidy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BINS = 30


def restart_losses(losses: Mapping[str, torch.Tensor], *, title: str) -> Figure:
    """Loss of many restarts of one sample against the step, and a histogram of where they end.

    losses: for each named network (restarts, steps + 1), column 0 at the random start. A row a
    network, all on the same axis of losses. Runs that end close together mean that PGD finds maxima
    of about one height, wherever it starts: the reason to trust it (Madry et al. 2018,
    arXiv:1706.06083, figures 1 and 5).
    """
    runs = {name: values.detach().cpu().double() for name, values in losses.items()}
    lowest = min(0.0, *(float(values.min()) for values in runs.values()))
    highest = max(float(values.max()) for values in runs.values()) * 1.05 + 1e-9
    figure = new_figure(14 + 38 * len(runs))
    grid = figure.subplots(len(runs), 2, squeeze=False, sharey=True, width_ratios=[3.2, 1.0])
    for k, (name, values) in enumerate(runs.items()):
        colour = COLOURS[k % len(COLOURS)]
        lines, margin = grid[k]
        for run in values.numpy():
            lines.plot(run, color=colour, alpha=0.4, linewidth=0.7)
        lines.set_title(name, loc="left", fontsize=SMALL, color=INK, pad=3)
        lines.set_ylabel("cross-entropy (nats)")
        lines.set_xlim(0, max(values.shape[1] - 1, 1))
        lines.set_ylim(lowest, highest)
        _histogram(margin, values[:, -1], (lowest, highest), colour)
        tidy(lines)
        tidy(margin)
    grid[-1, 0].set_xlabel("PGD step")
    grid[-1, 1].set_xlabel("runs")
    entitle(figure, title)
    return figure


def _histogram(axes: Any, final: torch.Tensor, span: tuple[float, float], colour: str) -> None:
    axes.hist(
        final.numpy(), bins=_BINS, range=span, orientation="horizontal", color=colour, alpha=0.8
    )
    ends = f"end at\n{float(final.min()):.2f} to {float(final.max()):.2f}"
    axes.set_title(ends, loc="left", fontsize=SMALL, pad=3)
    axes.tick_params(labelleft=False, left=False)
    axes.xaxis.get_major_locator().set_params(integer=True, nbins=3)
