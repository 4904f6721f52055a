"""Files written whole or not at all, and tensors read without running anything in a file."""

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Replace the file by `content`: at any moment, also after kill -9, it is the old or the new.

    Written beside it, synchronised to the disk, then renamed. Raises FileNotFoundError, which names
    it, where there is no such folder; of other errors of the system the path is `path`.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be written: there is no folder {path.parent}")
    beside = path.with_name(f".{path.name}.tmp")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException as error:
        beside.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is not None:
            error.filename, error.filename2 = str(path), None  # not the file beside it
        raise
    if os.name == "posix":  # the rename itself lasts once the directory is on the disk
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def save_tensors(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """torch.save of the content, as `write_atomically`."""
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    write_atomically(path, buffer.getvalue())


def read_tensors(path: str | os.PathLike[str], *, kind: str) -> dict[str, Any]:
    """What `save_tensors` wrote, tensors on the CPU: nothing in the file is executed.

    Raises FileNotFoundError, and ValueError for a file that is no `kind`, as "AttackResult".
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or foreign file raises nearly anything
        raise ValueError(
            f"{path} is no {kind} that was saved, and nothing of it was run: {type(error).__name__}"
        ) from error
    if not isinstance(content, dict) or content.get("kind") != kind:
        raise ValueError(f"{path} is no {kind} that was saved")
    return content
