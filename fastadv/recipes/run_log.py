"""The log of a run: one JSON object a line, cut back on resuming to what the checkpoint covers."""

import importlib
import json
import math
import os
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class RunLog:
    """Appends rows to a file; `length`, in bytes, goes into checkpoints.

    Infinite and NaN values are written as text, since JSON has none. Times are under "seconds"
    only: all else is the same for every run of a recipe on one machine.
    """

    def __init__(self, path: Path, *, length: int) -> None:
        """Keep the first `length` bytes of the file; ValueError if it has fewer."""
        self.path = path
        self.length: int = length
        with path.open("ab") as file:
            there = file.seek(0, os.SEEK_END)
            if there < length:
                raise ValueError(
                    f"{path} has {there} bytes, and the checkpoint beside it covers {length}: put "
                    "the file back, or start again in another folder"
                )
            file.truncate(length)

    def append(self, event: str, **values: Any) -> Row:
        row = {"event": event, **{name: _plain(value) for name, value in values.items()}}
        line = json.dumps(row, allow_nan=False).encode() + b"\n"
        with self.path.open("ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())  # a checkpoint on the disk never covers more than is there
        self.length += len(line)
        return row


def read_log(path: str | os.PathLike[str]) -> list[Row]:
    """The rows of a log, but for an unfinished last line.

    Example: `[row["robust"] for row in read_log("run/log.jsonl") if row["event"] == "epoch"]`.
    """
    lines = Path(path).read_bytes().split(b"\n")[:-1]
    return [json.loads(line) for line in lines]


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value


class Scalars:
    """TensorBoard curves of the epochs in a folder; those past the checkpoint are purged."""

    def __init__(self, folder: Path, *, epoch: int) -> None:
        try:
            tensorboard = importlib.import_module("torch.utils.tensorboard")
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                'TensorBoard curves need tensorboard: pip install "tensorboard>=2.16"',
                name=error.name,
            ) from error
        self.writer: Any = tensorboard.SummaryWriter(str(folder), purge_step=epoch + 1)

    def add(self, row: Row) -> None:
        for name in ("loss", "learning_rate", "eps", "clean", "robust"):
            self.writer.add_scalar(name, float(row[name]), row["epoch"])
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()
