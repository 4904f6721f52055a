"""What all figures have in common: a column's width, colours that everyone tells apart, letters."""

from __future__ import annotations

import importlib.util
import textwrap
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which the colour-blind tell apart
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
LINES = ("-", "--", "-.", ":")  # for prints without colours
INK, FAINT = "#222222", "#666666"
RIGHT, WRONG = "#0072B2", "#D55E00"  # no red against green

MILLIMETRES = 1 / 25.4  # in inches
COLUMN = 84.0  # mm, one of the two columns of a paper
SMALL, NORMAL = 7.0, 8.0  # points, at that width
LETTERS = 52  # of a title of NORMAL size across a column


def check_installed() -> None:
    """Raises ModuleNotFoundError, with the remedy, if there is no matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ModuleNotFoundError('figures need matplotlib: pip install "matplotlib>=3.8"')


def new_figure(height: float, *, layout: Literal["constrained"] | None = "constrained") -> Figure:
    """One column wide, `height` mm high."""
    check_installed()
    from matplotlib.figure import Figure

    size = (COLUMN * MILLIMETRES, height * MILLIMETRES)
    return Figure(figsize=size, dpi=300, layout=layout, facecolor="white")


def wrapped(title: str, letters: int = LETTERS) -> str:
    """In lines that fit a column."""
    whole = title.replace(" = ", "\xa0=\xa0")  # "eps = 0.1" stays on a line
    lines = [textwrap.fill(line, letters) for line in whole.splitlines()]
    return "\n".join(lines).replace("\xa0", " ")


def entitle(figure: Figure, title: str, **where: float) -> None:
    """y: where the title's upper edge is, if the layout does not find out."""
    text = wrapped(title)
    figure.suptitle(text, x=0.01, ha="left", va="top", fontsize=NORMAL, color=INK, **where)


def tidy(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set(linewidth=0.6, color=INK)
    axes.grid(True, color="#E6E6E6", linewidth=0.5)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=SMALL, width=0.6, length=2.5)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set(fontsize=NORMAL, color=INK)
