"""What is shown of an evaluation while it runs."""

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple


class Status(NamedTuple):
    """Of a process: `robust` of the `done` samples of its share are robust, of `expected` in all
    (None: not known); `attack` runs on `attacked` of the next block ("", 0: none does), of which as
    much is done as for `under_way` whole samples, an estimate by the steps that are left."""

    done: int
    expected: int | None
    robust: int
    attack: str
    attacked: int
    under_way: float = 0.0

    @property
    def percent(self) -> float | None:
        """Of all work, None where nobody knows how many samples there are; never falls."""
        if self.expected is None:
            return None
        return 100 * min(1.0, (self.done + self.under_way) / max(self.expected, 1))

    def __str__(self) -> str:
        total = "" if self.expected is None else f" of {self.expected:,}"
        share = "" if self.percent is None else f" ({self.percent:.0f} % of the work)"
        text = f"{self.done:,}{total} samples done{share}, {self.robust:,} robust"
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
                task,
                completed=status.done + status.under_way,
                total=status.expected,
                description=_title(status),
            )
    elif importlib.util.find_spec("tqdm") is not None:
        with importlib.import_module("tqdm").tqdm(leave=False) as bar:

            def draw(status: Status) -> None:
                bar.total, bar.n = status.expected, round(status.done + status.under_way, 1)
                bar.set_description(_title(status))

            yield draw
    else:
        yield lambda status: None


def _title(status: Status) -> str:
    running = f": {status.attack} on {status.attacked:,}" if status.attack else ""
    return f"attacking{running}, {status.robust:,} robust"
