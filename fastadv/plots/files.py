"""Figures as files."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

from fastadv.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SUFFIXES = (".png", ".svg", ".pdf")


def check_path(path: str | os.PathLike[str] | None) -> None:
    """Raises ValueError for a file that is no picture; None is none."""
    if path is not None and Path(path).suffix.lower() not in _SUFFIXES:
        raise ValueError(f"a figure's path must end in .png, .svg or .pdf; got {os.fspath(path)}")


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure to a .png file of 300 dots an inch, or to an .svg or .pdf file, by suffix.

    Written atomically. Letters of a PDF are TrueType, as many publishers ask for. Raises ValueError
    for another suffix, FileNotFoundError where there is no such folder.

    Example: `plots.save(curve.plot(), "curve.pdf")`.
    """
    check_path(path)
    import matplotlib

    content = io.BytesIO()
    with matplotlib.rc_context({"pdf.fonttype": 42}):  # put back after it
        figure.savefig(content, format=Path(path).suffix.lower()[1:], dpi=300)
    write_atomically(path, content.getvalue())
