"""What was measured, as a table, and what follows from it."""

import json
import math
from dataclasses import asdict, dataclass, fields

from fastadv.execution import Execution


@dataclass(frozen=True)
class Row:
    """A way to run a model. execution: with its batch size. forward, gradient: seconds a sample of
    a forward pass alone, and of a step with its way back; None where it was not measured. speed_up:
    over the default, the median over rounds of both in equal parts. off: the largest difference of
    its logits from the model's. rounds: 0 of what fell behind at first sight."""

    execution: Execution
    forward: float | None
    gradient: float | None
    speed_up: float
    off: float
    rounds: int


@dataclass(frozen=True)
class Table:
    """Rows, the fastest first. choice: the execution to use. default: what it is held to, with its
    batch size. seconds: that it took. notes: what could not be had, and why."""

    rows: tuple[Row, ...]
    choice: Execution
    default: Execution
    seconds: float
    clock: str
    notes: tuple[str, ...] = ()

    @property
    def chosen_row(self) -> Row:
        at = self.default if self.choice == Execution() else self.choice
        return next(row for row in self.rows if row.execution == at)

    def to_json(self) -> str:
        """Everything, as strict JSON; times in seconds a sample."""
        plain = asdict(self)
        plain["choice_repr"] = repr(self.choice)
        return json.dumps(plain, allow_nan=False)

    def __str__(self) -> str:
        heads = ("batch", "layout", "folded", "precision", "compiled")
        heads += ("forward", "with backward", "speed-up", "logits off by", "")
        lines = [heads, *(self._cells(row) for row in self.rows)]
        widths = [max(len(line[k]) for line in lines) for k in range(len(heads))]
        told = ["  ".join(f"{c:>{w}}" for c, w in zip(line, widths, strict=True)) for line in lines]
        told = [line.rstrip() for line in told]
        told.append(f"ms a sample, {self.clock}; measured in {self.seconds:.1f} s")
        return "\n".join([*told, *self.notes, f"choice: {self.choice!r}"])

    def _cells(self, row: Row) -> tuple[str, ...]:
        how = row.execution
        marks = ["choice"] if row is self.chosen_row else []
        marks += ["default"] if how == self.default else []
        return (
            str(how.batch_size),
            "channels_last" if how.channels_last else "as it is",
            "yes" if how.fold_batchnorm else "no",
            how.precision,
            "yes" if how.compile else "no",
            _milliseconds(row.forward),
            _milliseconds(row.gradient),
            f"{row.speed_up:.2f}" + ("" if row.rounds else "?"),
            f"{row.off:.1e}" if row.off else "0",
            ", ".join(marks),
        )


def _milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    value = 1e3 * seconds
    digits = max(0, 3 - math.ceil(math.log10(value))) if value > 0 else 3
    return f"{value:.{digits}f}"


def in_words(execution: Execution) -> str:
    """An execution without what is as by default."""
    changed = [
        f"{one.name}={getattr(execution, one.name)!r}"
        for one in fields(execution)
        if getattr(execution, one.name) != one.default
    ]
    return f"fastadv.Execution({', '.join(changed)})"
