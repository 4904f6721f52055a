"""Python processes that begin with torch and fastadv imported: forked from a server that did it.

A process of its own costs 2 to 4 s before its first line; forked, a few hundredths. For tests that
interrupt or kill processes, or let several work together; what only a new interpreter can show,
such as what an import loads, is shown by `subprocess`. A test process starts its server at the
first use, and the server ends with it.
"""

import multiprocessing
import os
import runpy
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
# the optimizers of torch 2.13 import torch._dynamo at their first use, which takes as long as torch
_IMPORTED = ["torch.distributed", "torch._dynamo", "fastadv.cli.app", "fastadv.recipes"]


class Forked:
    """`python *arguments`, a script or -m and a module, with the part of Popen that tests need.

    variables: of the environment, beside this process's. It runs in the current directory.
    """

    def __init__(self, *arguments: object, variables: Mapping[str, str] | None = None) -> None:
        self._folder = Path(tempfile.mkdtemp())
        self._printed: tuple[str, str] | None = None
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_IMPORTED)
        one_thread = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with mock.patch.dict(os.environ, one_thread):
            forkserver.ensure_running()
        own = {**os.environ, "OMP_NUM_THREADS": "1", **(variables or {})}
        self._process = context.Process(
            target=_python,
            args=([str(part) for part in arguments], own, os.getcwd(), self._outputs()),
        )
        self._process.start()

    def _outputs(self) -> list[Path]:
        return [self._folder / "stdout", self._folder / "stderr"]

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """As Popen's: None while it runs, -N if signal N killed it."""
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        if self.returncode is None:
            self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """What it has printed to stdout and stderr, when it has ended; after timeout it is killed
        and an AssertionError raised."""
        if self._printed is None:
            self._process.join(timeout)
            ended = self.returncode is not None
            self.kill()
            out, err = (path.read_text() if path.exists() else "" for path in self._outputs())
            shutil.rmtree(self._folder)
            self._printed = out, err
            assert ended, f"still running after {timeout} s:\n{out}{err}"
        return self._printed

    def __enter__(self) -> "Forked":
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is not None:
            self.kill()
        self.communicate()


def run(*arguments: object, variables: Mapping[str, str] | None = None) -> tuple[str, str]:
    """What `python *arguments` prints to stdout and stderr; it must succeed."""
    process = Forked(*arguments, variables=variables)
    out, err = process.communicate()
    assert process.returncode == 0, out + err
    return out, err


def _python(
    arguments: Sequence[str], variables: Mapping[str, str], folder: str, outputs: Sequence[Path]
) -> None:
    """In the new process."""
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    for target, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), target)
    if arguments[0] == "-m":
        sys.argv = list(arguments[1:])
        sys.path.insert(0, folder)
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(arguments)
        sys.path.insert(0, str(Path(arguments[0]).parent))
        runpy.run_path(arguments[0], run_name="__main__")
