"""Adversarial examples beside their originals, with what a network says of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from fastadv.plots.style import (
    COLUMN,
    FAINT,
    INK,
    RIGHT,
    SMALL,
    WRONG,
    entitle,
    new_figure,
    wrapped,
)
from fastadv.values import in_255ths

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ROWS = ("clean", "perturbation", "adversarial")
_LETTER = 1.55  # mm, of SMALL size, with some air
_MOST_COLUMNS, _LEAST_WIDTH, _MOST_WIDTH = 6, 12.0, 22.0  # mm
_SHORT = 4  # letters of a name
_LEFT, _LINE, _GAP, _BAR = 5.5, 3.2, 1.5, 11.0  # mm: of margins, of a line, of the scale below


def example_sheet(
    x: torch.Tensor,
    x_adv: torch.Tensor,
    y: torch.Tensor,
    logits: torch.Tensor,
    logits_adv: torch.Tensor,
    *,
    title: str,
    labels: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
) -> Figure:
    """Clean image, perturbation and adversarial image, one column a sample, with predictions.

    x, x_adv: (B, 1 or 3, H, W) in [0, 1]. logits, logits_adv: (B, C). labels: the names of the C
    classes, numbers if None (class_names is the same). Above a sample stands its label y, below
    each image the prediction with its softmax: blue where it is the label, orange where not. The
    perturbation is shown on one symmetric scale: red added, blue taken away (mean over channels).
    Samples that do not fit in a row follow below. Raises ValueError for no samples, and for labels
    that are not C.
    """
    names = _names(labels, class_names, logits.shape[1])
    if len(x) == 0:
        raise ValueError("there are no examples to draw")
    lines = 2 if max(len(name) for name in names) > _SHORT else 1
    figure, grid, scale = _grid(len(x), _most_columns(names, lines), lines, title)
    difference = (x_adv - x).detach().cpu().float().mean(1).numpy()
    largest = max(float(abs(difference).max()), 1e-12)  # an all-zero sheet still has a scale
    picture: Any = None
    for k, (clean, change, adversarial) in enumerate(grid):
        label = f"label{_between(lines)}{names[int(y[k])]}"
        clean.set_title(label, fontsize=SMALL, color=INK, pad=2)
        for axes, images, said in ((clean, x, logits), (adversarial, x_adv, logits_adv)):
            _show_image(axes, images[k])
            _name_prediction(axes, said[k], int(y[k]), names, _between(lines))
        picture = change.imshow(difference[k], cmap="RdBu_r", vmin=-largest, vmax=largest)
        size = in_255ths(float((x_adv[k] - x[k]).abs().max()), digits=3)
        change.set_xlabel(f"max {size}", fontsize=SMALL, color=FAINT, labelpad=2)
    bar = figure.colorbar(picture, cax=scale, orientation="horizontal")
    bar.set_label("change (pixels in [0, 1])", fontsize=SMALL, labelpad=1)
    scale.tick_params(labelsize=SMALL, length=2, pad=1)
    bar.outline.set_visible(False)  # type: ignore[operator]
    return figure


def _grid(
    count: int, most_columns: int, lines: int, title: str
) -> tuple[Figure, list[list[Any]], Any]:
    """(figure, three axes a sample, axes of the scale): laid out in mm, for a solver of layouts
    takes seconds for so many."""
    blocks = math.ceil(count / most_columns)
    columns = math.ceil(count / blocks)
    pitch = (COLUMN - _LEFT) / columns
    side = min(pitch - _GAP, _MOST_WIDTH)
    top = 2 + 3.8 * (1 + wrapped(title).count("\n"))  # lines of NORMAL size
    above, below = (lines * _LINE, 0.0, 0.0), (lines * _LINE, _LINE, lines * _LINE)
    heights = [a + side + b + _GAP for a, b in zip(above, below, strict=True)]
    height = top + blocks * sum(heights) + _BAR
    figure = new_figure(height, layout=None)
    grid: list[list[Any]] = [[] for _ in range(count)]
    for row in range(3 * blocks):
        block, kind = divmod(row, 3)
        bottom = height - top - block * sum(heights) - sum(heights[:kind]) - above[kind] - side
        for k in range(block * columns, min((block + 1) * columns, count)):
            left = _LEFT + (k % columns) * pitch + (pitch - side) / 2
            axes: Any = figure.add_axes(_box(left, bottom, side, side, height))
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if k % columns == 0:
                axes.set_ylabel(_ROWS[kind], fontsize=SMALL, color=INK, labelpad=2)
            grid[k].append(axes)
    scale = figure.add_axes(_box(_LEFT, 8.0, COLUMN - 2 * _LEFT, 1.5, height))
    entitle(figure, title, y=1 - 1.0 / height)
    return figure, grid, scale


def _box(
    left: float, bottom: float, width: float, side: float, height: float
) -> tuple[float, float, float, float]:
    """mm as shares of a figure, `height` mm high."""
    return left / COLUMN, bottom / height, width / COLUMN, side / height


def _names(
    labels: Sequence[str] | None, class_names: Sequence[str] | None, count: int
) -> list[str]:
    if labels is not None and class_names is not None:
        raise ValueError("labels and class_names are the same: give one of them")
    given = class_names if labels is None else labels
    if given is not None and len(given) != count:
        raise ValueError(
            f"labels must name the {count} classes of the logits, in their order; got {len(given)}"
        )
    return [str(k) for k in range(count)] if given is None else [str(name) for name in given]


def _most_columns(names: Sequence[str], lines: int) -> int:
    """As many samples a row as leave room for the longest text below one."""
    letters = max(len(name) for name in names) + len(", 100 %" if lines == 1 else ",")
    width = max(_LETTER * letters, _LEAST_WIDTH)
    return max(1, min(_MOST_COLUMNS, int((COLUMN - _LEFT) / width)))


def _between(lines: int) -> str:
    return " " if lines == 1 else "\n"


def _show_image(axes: Any, image: torch.Tensor) -> None:
    pixels = image.detach().cpu().float().permute(1, 2, 0).numpy()
    axes.imshow(pixels if pixels.shape[2] == 3 else pixels[..., 0], cmap="gray", vmin=0, vmax=1)


def _name_prediction(
    axes: Any, logits: torch.Tensor, y: int, names: Sequence[str], between: str
) -> None:
    confidence, prediction = logits.detach().float().softmax(0).max(0)
    colour = RIGHT if int(prediction) == y else WRONG
    text = f"{names[int(prediction)]},{between}{100 * float(confidence):.0f} %"
    axes.set_xlabel(text, fontsize=SMALL, color=colour, labelpad=2)
