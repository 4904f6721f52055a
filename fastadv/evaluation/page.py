"""A report as one HTML file: no external resources, readable on any screen."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

from fastadv.evaluation import png
from fastadv.evaluation.examples import Example
from fastadv.evaluation.page_style import STYLE

_LARGE_PIXELS = 64  # images of so many a side


class Bar(NamedTuple):
    """A share in [0, 1], drawn on a track of 100 % from left to right, and what is said of it;
    interval: (low, high), a line across its end."""

    name: str
    share: float
    said: str
    interval: tuple[float, float] | None = None


class Page(NamedTuple):
    """What a page shows: a title, a sentence, bars, notes, a table of rows if there are any, a
    table of facts, examples, and what words mean.

    shares: a number in [0, 1] for each row, drawn as a bar under its accuracy, which is the column
    `bar`. All text is escaped; `code` in backticks is set as code.
    """

    title: str
    lead: str
    bars: Sequence[Bar]
    facts: Mapping[str, str]
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    shares: Sequence[float]
    notes: Sequence[str]
    words: Mapping[str, str]
    bar: int = 3
    of_rows: str = "Attack by attack"
    date: str = ""
    examples: Sequence[Example] = ()
    of_examples: str = ""

    def html(self) -> str:
        """A file of its own."""
        title = escape(self.title)
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
            f"<h1>{title}</h1>\n{self._found()}"
            f"<h2>What defines these numbers</h2>\n{_table_of_facts(self.facts)}"
            f"<h2>What the words mean</h2>\n{_list_of_words(self.words)}</body>\n</html>\n"
        )

    def fragment(self) -> str:
        """The same, to stand in another page, whose style it takes; facts folded away."""
        return (
            f"<div>\n<h3>{escape(self.title)}</h3>\n{self._found()}"
            "<details>\n<summary>what defines it</summary>\n"
            f"{_table_of_facts(self.facts)}</details>\n</div>\n"
        )

    def _found(self) -> str:
        date = f'<p class="soft">Begun {escape(self.date)}</p>\n' if self.date else ""
        bars = "".join(map(_measure, self.bars))
        if any(bar.interval for bar in self.bars):
            bars += '<p class="soft">The lines across the ends are 95 % intervals.</p>\n'
        table = _table(self.columns, self.rows, self.shares, self.bar)
        if table:
            table = f"<h2>{escape(self.of_rows)}</h2>\n{table}"
        shown = _gallery(self.examples, self.of_examples)
        return f"<p>{escape(self.lead)}</p>\n{date}{bars}{_noted(self.notes)}{table}{shown}"


def _measure(bar: Bar) -> str:
    return (
        f'<div class="measure"><span>{escape(bar.name)}</span> <strong>{escape(bar.said)}</strong>'
        f"{_track(bar.share, bar.interval)}</div>\n"
    )


def _track(share: float, interval: tuple[float, float] | None = None) -> str:
    line = ""
    if interval is not None:
        low, high = interval
        place = f"left: {100 * low:.2f}%; width: {100 * (high - low):.2f}%"
        line = f'<span class="interval" style="{place}"></span>'
    bar = f'<span class="bar" style="width: {100 * share:.2f}%"></span>'
    return f'<span class="track">{bar}{line}</span>'


def _gallery(examples: Sequence[Example], said: str) -> str:
    if not examples:
        return ""
    figures = "".join(map(_pictured, examples))
    return f'<h2>Examples</h2>\n<p>{escape(said)}</p>\n<div class="examples">\n{figures}</div>\n'


def _pictured(one: Example) -> str:
    pictures = (
        (one.original, f"sample {one.index} as it is, a {one.label}"),
        (one.change, "the change"),
        (one.adversarial, f"sample {one.index} as attacked, taken for a {one.prediction}"),
    )
    images = "".join(_image(content, said) for content, said in pictures)
    said = f"sample {one.index:,}: class <b>{one.label}</b>, taken for <b>{one.prediction}</b>"
    return (
        f'<figure class="example"><div class="images">{images}</div>'
        f"<figcaption>{said}</figcaption></figure>\n"
    )


def _image(content: bytes, said: str) -> str:
    """In the page itself; large pixels have sharp edges."""
    kind = ' class="pixels"' if max(png.size_of(content)) <= _LARGE_PIXELS else ""
    data = base64.b64encode(content).decode()
    return f'<img{kind} width="96" alt="{escape(said)}" src="data:image/png;base64,{data}">'


def _noted(notes: Sequence[str]) -> str:
    return "".join(f'<p class="note">{escape(note)}</p>\n' for note in notes)


def _table_of_facts(facts: Mapping[str, str]) -> str:
    pairs = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{_marked(value)}</td></tr>\n'
        for name, value in facts.items()
    )
    return f'<table class="facts">\n<tbody>\n{pairs}</tbody>\n</table>\n'


def _list_of_words(words: Mapping[str, str]) -> str:
    pairs = (f"<dt>{escape(word)}</dt>\n<dd>{escape(said)}</dd>\n" for word, said in words.items())
    return f"<dl>\n{''.join(pairs)}</dl>\n"


def _table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], shares: Sequence[float], at: int
) -> str:
    if not rows:
        return ""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    body = ""
    for row, share in zip(rows, shares, strict=True):
        cells = [
            f'<td data-name="{escape(name)}">{escape(cell)}{_track(share) if k == at else ""}</td>'
            for k, (name, cell) in enumerate(zip(columns, row, strict=True))
        ]
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
