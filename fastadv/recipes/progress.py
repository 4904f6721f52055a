"""What a run says on the terminal: a bar for the epoch in progress, one line for each done."""

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from typing import Any

_HERTZ = 2  # of the bar: a terminal that redraws more often costs a small network time


class Progress:
    """Prints if `wanted`; the bar needs a terminal and rich."""

    def __init__(self, *, wanted: bool) -> None:
        self.wanted = wanted

    def say(self, line: str) -> None:
        if self.wanted:
            print(line, flush=True)

    @contextlib.contextmanager
    def bar(self, title: str, *, done: int, total: int) -> Iterator[Callable[[], None]]:
        """A function to call after each batch."""
        can_draw = sys.stderr.isatty() and importlib.util.find_spec("rich") is not None
        if not (self.wanted and can_draw):
            yield lambda: None
            return
        console = importlib.import_module("rich.console").Console(stderr=True)
        bar = importlib.import_module("rich.progress").Progress(
            console=console, transient=True, refresh_per_second=_HERTZ
        )
        with bar:
            task = bar.add_task(title, total=total, completed=done)
            yield lambda: bar.advance(task)


def epoch_line(row: dict[str, Any], *, epochs: int) -> str:
    """One line of an epoch's row in the log, with all that makes its robust accuracy a number."""
    verdicts = ", ".join(row["said"]) or "not yet due"
    rescue = "rescue under way, " if row["rescue"] else ""
    return (
        f"epoch {row['epoch']}/{epochs}  {row['seconds']:.1f} s  lr {row['learning_rate']:.3g}  "
        f"eps {row['eps']:.4g}  loss {float(row['loss']):.4f}  clean {100 * row['clean']:.1f} %  "
        f"PGD-{row['steps']} {100 * row['robust']:.1f} %  (n {row['n']}, eps "
        f"{row['attack_eps']:.4g})  sentinel: {rescue}{verdicts}"
    )
