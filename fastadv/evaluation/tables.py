"""Tables in Markdown, and texts that fit."""

from collections.abc import Sequence


def markdown(
    *,
    headline: str,
    facts: dict[str, str],
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    notes: Sequence[str],
) -> str:
    """The headline, a table of rows if there are any, a table of facts, and a list of notes."""
    lines = [headline, ""]
    if rows:
        # the first column is a name, the others are numbers
        rule = "|".join(["---", *["---:"] * (len(columns) - 1)])
        lines += [_line(columns), f"|{rule}|", *[_line(row) for row in rows], ""]
    lines += ["| | |", "|---|---|", *[_line(fact) for fact in facts.items()], ""]
    if notes:
        lines += [*[f"- {' '.join(note.split())}" for note in notes], ""]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_cell(cell) for cell in cells)} |"


def _cell(text: str) -> str:
    # a repr may hold the character that ends a table cell
    return text.replace("|", "\\|").replace("\n", " ")


def shortened(text: str, most: int = 88) -> str:
    """The text in one line of at most `most` characters."""
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 3]}..."
