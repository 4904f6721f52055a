"""What is shown of an evaluation while it runs."""

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple


class Status(NamedTuple):
    """Of a process: `robust` of the `done` samples of its share are robust, of `expected` in all
    (None: not known); `attack` runs on `attacked` of the next block ("", 0: none does)."""

    done: int
    expected: int | None
    robust: int
    attack: str
    attacked: int

    def __str__(self) -> str:
        total = "" if self.expected is None else f" of {self.expected:,}"
        text = f"{self.done:,}{total} samples done, {self.robust:,} robust"
        return text + (f"; {self.attack} attacks {self.attacked:,}" if self.attack else "")


Watch = Callable[[Status], None]


@contextlib.contextmanager
def shown(wanted: bool | Watch) -> Iterator[Watch]:
    """True: a progress bar by rich, else tqdm, on a terminal, else nothing."""
    if callable(wanted):
        yield wanted
    elif not wanted or not sys.stderr.isatty():
        yield lambda status: None
    elif importlib.util.find_spec("rich") is not None:
        console = importlib.import_module("rich.console").Console(stderr=True)
        bar = importlib.import_module("rich.progress").Progress(console=console, transient=True)
        with bar:
            task = bar.add_task("attacking", total=None)
            yield lambda status: bar.update(
                task, completed=status.done, total=status.expected, description=_title(status)
            )
    elif importlib.util.find_spec("tqdm") is not None:
        with importlib.import_module("tqdm").tqdm(leave=False) as bar:

            def draw(status: Status) -> None:
                bar.total, bar.n = status.expected, status.done
                bar.set_description(_title(status))

            yield draw
    else:
        yield lambda status: None


def _title(status: Status) -> str:
    running = f": {status.attack} on {status.attacked:,}" if status.attack else ""
    return f"attacking{running}, {status.robust:,} robust"
