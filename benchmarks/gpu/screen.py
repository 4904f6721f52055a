"""Prints tables to the screen and to the report: with rich where it is there, else plainly."""

import io
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu import tables as gpu_tables
from benchmarks.harness.schema import Row

try:
    from rich.console import Console
    from rich.table import Table
except ImportError:  # a GPU machine that nothing can be installed on
    Console = Table = None

_WIDTH = 170


class Screen:
    """What is printed goes to the report too. report: a file, appended to."""

    def __init__(self, report: Path) -> None:
        self._report = report

    def line(self, text: str) -> None:
        print(text, flush=True)
        with self._report.open("a") as file:
            file.write(f"{text}\n")

    def rows(self, rows: Sequence[Row]) -> None:
        """The tables of every suite that there are rows of."""
        for suite, tables in gpu_tables.SCREEN.items():
            own = [row for row in rows if row.suite == suite]
            for heads, lines in tables(own) if own else []:
                self.cells(suite, heads, lines)

    def cells(self, title: str, heads: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
        if lines:
            self.line(_drawn(title, heads, lines))


def _drawn(title: str, heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    if Console is None or Table is None:
        return plain(title, heads, lines)
    table = Table(*heads, title=title, title_justify="left", box=None, pad_edge=False)
    for line in lines:
        table.add_row(*line)
    text = io.StringIO()
    Console(file=text, width=_WIDTH, markup=False, emoji=False, highlight=False).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def plain(title: str, heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell, two spaces apart."""
    every = [list(heads), *map(list, lines)]
    widths = [max(len(line[i]) for line in every) for i in range(len(heads))]
    drawn = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in every
    ]
    return "\n".join([title, *drawn])
