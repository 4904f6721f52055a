"""A report as one HTML file: no external resources, readable on light and dark screens."""

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

_STYLE = """
:root { color-scheme: light dark; --line: #8886; --bar: #3b82c4; --warn: #b45309; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color: CanvasText; background: Canvas; }
h1 { margin-bottom: 0; }
table { border-collapse: collapse; margin: 1.5rem 0; width: 100%; }
th, td { border-bottom: 1px solid var(--line); padding: .35rem .6rem; text-align: left;
  vertical-align: top; overflow-wrap: anywhere; }
thead th { overflow-wrap: normal; }
.numbers td:not(:first-child), .numbers th:not(:first-child) { text-align: right;
  font-variant-numeric: tabular-nums; }
.numbers td:first-child { white-space: nowrap; }
.bar { display: block; height: .3rem; background: var(--bar); margin-left: auto; }
.note { border-left: .3rem solid var(--warn); padding-left: .8rem; }
@media (prefers-color-scheme: dark) { :root { --bar: #7ab8f5; --warn: #fbbf24; } }
"""


class Page(NamedTuple):
    """What a page shows: a title, notes, a table of rows if there are any, and a table of facts.

    shares: a number in [0, 1] for each row, drawn as a bar under its robust accuracy, which is the
    column `bar`.
    All text is escaped; `code` in backticks is set as code.
    """

    title: str
    lead: str
    facts: dict[str, str]
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    shares: Sequence[float]
    notes: Sequence[str]
    bar: int = 3

    def html(self) -> str:
        """A file of its own."""
        title = escape(self.title)
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
            f"<h1>{title}</h1>\n{self._found()}{_table_of_facts(self.facts)}"
            "</body>\n</html>\n"
        )

    def fragment(self) -> str:
        """The same, to stand in another page, whose style it takes; facts folded away."""
        return (
            f"<div>\n<h3>{escape(self.title)}</h3>\n{self._found()}"
            "<details>\n<summary>what defines it</summary>\n"
            f"{_table_of_facts(self.facts)}</details>\n</div>\n"
        )

    def _found(self) -> str:
        table = _table(self.columns, self.rows, self.shares, self.bar)
        return f"<p>{escape(self.lead)}</p>\n{_noted(self.notes)}{table}"


def _noted(notes: Sequence[str]) -> str:
    return "".join(f'<p class="note">{escape(note)}</p>\n' for note in notes)


def _table_of_facts(facts: dict[str, str]) -> str:
    pairs = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{_marked(value)}</td></tr>\n'
        for name, value in facts.items()
    )
    return f"<table>\n<tbody>\n{pairs}</tbody>\n</table>\n"


def _table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], shares: Sequence[float], at: int
) -> str:
    if not rows:
        return ""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    body = ""
    for row, share in zip(rows, shares, strict=True):
        cells = [f"<td>{escape(cell)}</td>" for cell in row]
        bar = f'<span class="bar" style="width: {100 * share:.2f}%"></span>'
        cells[at] = f"<td>{escape(row[at])}{bar}</td>"
        body += f"<tr>{''.join(cells)}</tr>\n"
    return (
        f'<table class="numbers">\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n'
        "</table>\n"
    )


def _marked(text: str) -> str:
    inside = text[1:-1]
    if text[:1] == text[-1:] == "`" and len(text) > 1:
        return f"<code>{escape(inside)}</code>"
    return escape(text)
