"""Reports of commands: in which files they can go, saved, and what is shown before."""

import sys
from pathlib import Path

from fastadv.cli.user_error import UserError
from fastadv.evaluation import Curve, Report, Status
from fastadv.evaluation.display import Watch

SUFFIXES = (".json", ".md", ".html")


def check_reports(files: list[Path], *, option: str = "report") -> None:
    """Before an attack that may take days, not after it."""
    for path in files:
        if path.suffix not in SUFFIXES:
            raise UserError(f"--{option} must end in {' or '.join(SUFFIXES)}; got {path}")
        if not path.parent.is_dir():
            raise UserError(f"--{option}: there is no folder {path.parent}")


def save_reports(found: Report | Curve, files: list[Path]) -> None:
    for path in files:
        found.save(path)


def shown_progress() -> bool | Watch:
    """A bar on a terminal, else lines."""
    return True if sys.stderr.isatty() else _lines()


def _lines() -> Watch:
    """A line for every attack, every block and every percent: looks are too many."""
    before: tuple[int, str, int] | None = None

    def show(status: Status) -> None:
        nonlocal before
        now = status.done, status.attack, int(status.percent or 0.0)
        if now != before:
            before = now
            print(status, file=sys.stderr, flush=True)

    return show
