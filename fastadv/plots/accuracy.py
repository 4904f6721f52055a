"""Accuracy: against the radius of an attack, and one bar after another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fastadv.plots.style import (
    COLOURS,
    FAINT,
    INK,
    LINES,
    MARKERS,
    NORMAL,
    SMALL,
    entitle,
    new_figure,
    tidy,
    wrapped,
)
from fastadv.values import in_255ths

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Interval = tuple[float, float]
_STEPS_OF_TICKS = (1, 2, 4, 8, 16, 32, 64)  # in 1/255
_MOST_TICKS = 5
_LETTERS = 45  # of a title across the axes


def accuracy_against_eps(
    eps: Sequence[float] | Mapping[str, Sequence[float]],
    accuracies: Mapping[str, Sequence[float]],
    *,
    title: str,
    intervals: Mapping[str, Sequence[Interval]] | None = None,
    norm: str = "L-infinity",
    mark: float | None = None,
    stairs: bool = False,
) -> Figure:
    """Robust accuracy of each named network against the radius; eps = 0 is clean accuracy.

    eps: of all networks, or of each by its name. accuracies, intervals: in [0, 1], one value or
    (low, high) for each eps. mark: a radius to point out. stairs: an accuracy holds up to the next
    eps, and no markers are drawn. title: should state attack, steps,
    restarts and n. `Curve.plot` calls this.
    """
    figure = new_figure(66)
    axes: Any = figure.add_subplot()
    drawn: list[float] = []
    for k, (name, values) in enumerate(accuracies.items()):
        colour = COLOURS[k % len(COLOURS)]
        radii = eps[name] if isinstance(eps, Mapping) else eps
        drawn += [float(radius) for radius in radii]
        axes.plot(
            radii,
            [100 * value for value in values],
            color=colour,
            label=name,
            linewidth=1.3,
            linestyle=LINES[k % len(LINES)],
            drawstyle="steps-post" if stairs else "default",
            markersize=4,
            marker="" if stairs else MARKERS[k % len(MARKERS)],
            markeredgecolor="white",
            markeredgewidth=0.5,
            clip_on=False,
            zorder=3,
        )
        if intervals is not None:
            low, high = zip(*intervals[name], strict=True)
            bounds = [100 * v for v in low], [100 * v for v in high]
            step: Any = "post" if stairs else None
            axes.fill_between(radii, *bounds, step=step, color=colour, alpha=0.16, linewidth=0)
    _scale(axes, drawn)
    if mark is not None:
        axes.axvline(mark, color=FAINT, linewidth=0.7, linestyle=(0, (2, 3)))
        where = dict(transform=axes.get_xaxis_transform(), ha="center", va="bottom")
        axes.text(mark, 1.01, f"eps = {in_255ths(mark)}", fontsize=SMALL, color=FAINT, **where)
    axes.set_xlabel(f"eps, radius of the {norm} ball (pixels in [0, 1])")
    axes.set_ylabel("accuracy under attack (%)")
    note = "" if intervals is None else "\nbands: 95 % intervals over samples"
    pad = 4 if mark is None else 12
    axes.set_title(wrapped(title + note, _LETTERS), loc="left", fontsize=NORMAL, color=INK, pad=pad)
    if len(accuracies) > 1 or "" not in accuracies:
        axes.legend(frameon=False, fontsize=SMALL, loc="best")
    tidy(axes)
    return figure


def accuracy_bars(
    accuracies: Mapping[str, float],
    *,
    title: str,
    intervals: Mapping[str, Interval] | None = None,
) -> Figure:
    """A bar for each named accuracy in [0, 1], on one axis from 0 to 100 %, the first at the top.

    intervals: (low, high) of each. `Report.plot` calls this.
    """
    figure = new_figure(16 + 6.5 * len(accuracies) + 3.5 * wrapped(title).count("\n"))
    axes: Any = figure.add_subplot()
    for k, (name, value) in enumerate(accuracies.items()):
        colour = COLOURS[1] if k == 0 else COLOURS[0]
        axes.barh(k, 100 * value, height=0.62, color=colour, zorder=2)
        end = value
        if intervals is not None:
            low, end = intervals[name]
            axes.plot([100 * low, 100 * end], [k, k], color=INK, linewidth=1, zorder=3)
        axes.text(100 * end + 1.5, k, f"{100 * value:.1f}", va="center", fontsize=SMALL, color=INK)
    axes.set(xlim=(0, 112), ylim=(len(accuracies) - 0.5, -0.5), xticks=range(0, 101, 20))
    axes.set_yticks(range(len(accuracies)), list(accuracies))
    note = "" if intervals is None else "; lines: 95 % intervals"
    axes.set_xlabel(f"accuracy (%){note}")
    entitle(figure, title)
    tidy(axes)
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)
    return figure


def _scale(axes: Any, radii: list[float]) -> None:
    """Room for whole markers; ticks in 1/255 where the radii are."""
    from matplotlib.ticker import FuncFormatter, MultipleLocator

    low, high = min(radii), max(radii)
    margin = 0.03 * (high - low) or 0.01
    axes.set(ylim=(-3, 103), xlim=(low - margin, high + margin), yticks=range(0, 101, 20))
    if all(radius == 0 or in_255ths(radius).endswith("/255") for radius in radii) and high > 0:
        step = next((s for s in _STEPS_OF_TICKS if high * 255 / s <= _MOST_TICKS), 51)
        axes.xaxis.set_major_locator(MultipleLocator(step / 255))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: in_255ths(value)))
