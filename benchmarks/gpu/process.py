"""Runs a command with a time limit: its output is kept whatever happens, its group is ended."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

_MERCY = 8.0  # seconds between the interrupt, at which pytest prints its summary, and the kill

ROOT = Path(__file__).resolve().parents[2]


def run(
    command: Sequence[str],
    *,
    seconds: float,
    log: Path,
    show: bool,
    variables: Mapping[str, str | None] | None = None,
) -> int | None:
    """Exit status, or None where the time was up; output is appended to `log` line by line.

    show: also print it. variables: of the environment, None to unset. The command runs in the
    repository's root, is interrupted at the limit as by Ctrl-C, and killed 8 seconds later.
    """
    environment = dict(os.environ) | {"PYTHONUNBUFFERED": "1"}
    folders = [str(ROOT), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(folder for folder in folders if folder)
    for name, value in (variables or {}).items():
        environment.pop(name, None)
        if value is not None:
            environment[name] = value
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        start_new_session=True,
        text=True,
        errors="replace",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    reader = threading.Thread(target=_copy, args=(process.stdout, log, show), daemon=True)
    reader.start()
    try:
        return _wait(process, seconds)
    finally:
        _signal(process, signal.SIGKILL)  # also what it has started itself
        process.wait()
        reader.join(timeout=2)
        if not reader.is_alive():
            process.stdout.close()


def _wait(process: subprocess.Popen, seconds: float) -> int | None:
    try:
        return process.wait(timeout=max(0.1, seconds))
    except subprocess.TimeoutExpired:
        _signal(process, signal.SIGINT)
    try:
        process.wait(timeout=_MERCY)
    except subprocess.TimeoutExpired:
        pass
    return None


def _signal(process: subprocess.Popen, number: int) -> None:
    try:
        os.killpg(process.pid, number)
    except (ProcessLookupError, PermissionError):
        pass  # it has ended by itself


def _copy(stream: IO[str], log: Path, show: bool) -> None:
    write: Callable[[str], object] = sys.stdout.write if show else lambda line: None
    with log.open("a") as file:
        for line in stream:
            file.write(line)
            file.flush()
            write(line)
            sys.stdout.flush()
