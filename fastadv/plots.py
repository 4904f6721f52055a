"""Figures of robustness: accuracy against eps, sheets of examples, losses of many restarts.

Each function returns a matplotlib `Figure` of its own and touches no global state of pyplot; save
it with `figure.savefig("name.png")`. matplotlib is imported when a figure is made:
`pip install "matplotlib>=3.8"`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which the colour-blind tell apart
_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = ("o", "s", "^", "D", "v", "P")
_INK, _FAINT = "#222222", "#8A8A8A"
_RIGHT, _WRONG = "#00704D", "#B3261E"

__all__ = ["accuracy_against_eps", "example_sheet", "restart_losses"]


def __dir__() -> list[str]:
    return sorted(__all__)


def accuracy_against_eps(
    eps: Sequence[float],
    accuracies: Mapping[str, Sequence[float]],
    *,
    title: str,
    intervals: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    norm: str = "L-infinity",
    mark: float | None = None,
) -> Figure:
    """Robust accuracy of each named network against the radius; eps = 0 is clean accuracy.

    accuracies, intervals: in [0, 1], one value or (low, high) for each eps. mark: a radius to point
    out. title: should state attack, steps, restarts and n.
    """
    figure = _figure(7.2, 4.5)
    axes: Any = figure.add_subplot()
    if mark is not None:
        axes.axvline(mark, color=_FAINT, linewidth=1, linestyle=(0, (2, 3)))
        axes.text(mark, 103.5, f"eps = {mark:g}", ha="center", fontsize=9, color=_FAINT)
    for k, (name, values) in enumerate(accuracies.items()):
        colour = _COLOURS[k % len(_COLOURS)]
        percent = [100 * value for value in values]
        axes.plot(
            eps,
            percent,
            color=colour,
            label=name,
            linewidth=2,
            markersize=6,
            marker=_MARKERS[k % len(_MARKERS)],
            markeredgecolor="white",
            markeredgewidth=0.8,
            clip_on=False,
            zorder=3,
        )
        if intervals is not None:
            low, high = zip(*intervals[name], strict=True)
            axes.fill_between(
                eps,
                [100 * v for v in low],
                [100 * v for v in high],
                color=colour,
                alpha=0.14,
                linewidth=0,
            )
    axes.set(ylim=(-2, 102), xlim=(min(eps), max(eps)))
    axes.set_xlabel(f"eps, radius of the {norm} ball (pixels in [0, 1])")
    axes.set_ylabel("accuracy under attack (%)")
    note = "" if intervals is None else "\nbands: 95 % intervals over samples"
    axes.set_title(title + note, loc="left", fontsize=10, color=_INK, pad=22)
    axes.legend(frameon=False, loc="upper right")
    _tidy(axes)
    return figure


def example_sheet(
    x: torch.Tensor,
    x_adv: torch.Tensor,
    y: torch.Tensor,
    logits: torch.Tensor,
    logits_adv: torch.Tensor,
    *,
    title: str,
    class_names: Sequence[str] | None = None,
) -> Figure:
    """Clean image, perturbation and adversarial image, one column a sample, with predictions.

    x, x_adv: (B, 1 or 3, H, W) in [0, 1]. logits, logits_adv: (B, C); the confidence shown is the
    softmax of the prediction, green where it is the label y and red where not. The perturbation is
    shown on one symmetric scale: red added, blue taken away (mean over channels).
    """
    columns = len(x)
    figure = _figure(1.25 * columns + 1.5, 5.2)
    grid = figure.subplots(3, columns, squeeze=False)
    difference = (x_adv - x).detach().cpu().float().mean(1).numpy()
    largest = max(float(abs(difference).max()), 1e-12)  # an all-zero sheet still has a scale
    names = class_names or [str(k) for k in range(logits.shape[1])]
    rows = ("clean", "perturbation", "adversarial")
    picture: Any = None
    for k in range(columns):
        for row, images in ((0, x), (2, x_adv)):
            _show_image(grid[row, k], images[k])
            _name_prediction(grid[row, k], (logits, logits_adv)[row // 2][k], int(y[k]), names)
        picture = grid[1, k].imshow(difference[k], cmap="RdBu_r", vmin=-largest, vmax=largest)
        size = f"{float((x_adv[k] - x[k]).abs().max()):.3g}"
        grid[1, k].set_xlabel(f"max {size}", fontsize=8, color=_FAINT)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    for row, name in enumerate(rows):
        grid[row, 0].set_ylabel(name, fontsize=10, color=_INK)
    bar = figure.colorbar(picture, ax=list(grid[1]), fraction=0.02, pad=0.01)
    bar.set_label("change (pixels in [0, 1])", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, color=_INK)
    return figure


def restart_losses(losses: Mapping[str, torch.Tensor], *, title: str) -> Figure:
    """Loss of many restarts of one sample against the step, and a histogram of where they end.

    losses: for each named network (restarts, steps + 1), column 0 at the random start. Runs that
    end close together mean that PGD finds maxima of about one height, wherever it starts: the
    reason to trust it (Madry et al. 2018, arXiv:1706.06083, figures 1 and 5).
    """
    figure = _figure(4.6 * len(losses) + 0.6, 4.2)
    widths = [3.2, 1.0] * len(losses)
    grid = figure.subplots(1, 2 * len(losses), squeeze=False, width_ratios=widths)[0]
    for k, (name, values) in enumerate(losses.items()):
        runs = values.detach().cpu().double().numpy()
        axes, margin = grid[2 * k], grid[2 * k + 1]
        colour = _COLOURS[k % len(_COLOURS)]
        for run in runs:
            axes.plot(run, color=colour, alpha=0.4, linewidth=1.1)
        final = runs[:, -1]
        axes.set_title(name, loc="left", fontsize=10, color=colour)
        axes.set_xlabel("PGD step")
        axes.set_ylabel("cross-entropy (nats)")
        axes.set_xlim(0, runs.shape[1] - 1)
        axes.set_ylim(min(0.0, float(runs.min())), float(runs.max()) * 1.05 + 1e-9)
        margin.sharey(axes)
        low, high = axes.get_ylim()
        margin.hist(
            final, bins=30, range=(low, high), orientation="horizontal", color=colour, alpha=0.8
        )
        margin.set_xlabel("runs")
        margin.set_title(
            f"final losses\n{final.min():.2f} to {final.max():.2f}", loc="left", fontsize=8
        )
        margin.tick_params(labelleft=False, left=False)
        margin.xaxis.get_major_locator().set_params(integer=True, nbins=3)
        _tidy(axes)
        _tidy(margin)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, color=_INK)
    return figure


def _show_image(axes: Any, image: torch.Tensor) -> None:
    pixels = image.detach().cpu().float().permute(1, 2, 0).numpy()
    axes.imshow(pixels if pixels.shape[2] == 3 else pixels[..., 0], cmap="gray", vmin=0, vmax=1)


def _name_prediction(axes: Any, logits: torch.Tensor, y: int, names: Sequence[str]) -> None:
    confidence, prediction = logits.detach().float().softmax(0).max(0)
    colour = _RIGHT if int(prediction) == y else _WRONG
    text = f"{names[int(prediction)]}, {100 * float(confidence):.0f} %"
    axes.set_xlabel(text, fontsize=9, color=colour)


def check_installed() -> None:
    """Raises ModuleNotFoundError, with the remedy, if there is no matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ModuleNotFoundError('figures need matplotlib: pip install "matplotlib>=3.8"')


def _figure(width: float, height: float) -> Figure:
    check_installed()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=150, layout="constrained", facecolor="white")


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="#E6E6E6", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_INK, labelsize=9)
