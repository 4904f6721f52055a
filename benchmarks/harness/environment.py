"""What a row says of the machine and the software: device, versions, commit, command."""

import datetime
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

import torch

import fastadv
from benchmarks.harness.schema import Environment, normalise_device

_ROOT = Path(__file__).resolve().parents[2]


def describe(
    peers: list[str], *, device: torch.device, module: str, arguments: list[str] | None
) -> Environment:
    """The environment of a run of `python -m <module> <arguments>`, of sys.argv if None.

    peers: distributions whose versions to list. The device is the model name of CPU or GPU, never
    a host name; paths in the command are cut to their last part.
    """
    versions = {"fastadv": fastadv.__version__, "torch": torch.__version__}
    versions["python"] = platform.python_version()
    for name in ("triton", *peers):
        version = distribution_version(name)
        if version:
            versions[name] = version
    given = sys.argv[1:] if arguments is None else arguments
    now = datetime.datetime.now(datetime.UTC)
    return Environment(
        device=normalise_device(device_model(device)),
        threads=torch.get_num_threads(),
        load=round(os.getloadavg()[0], 2),
        versions=versions,
        commit=_commit(),
        date=now.isoformat(timespec="seconds"),
        command=shlex.join(["python", "-m", module, *map(_without_folders, given)]),
    )


def device_model(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine() or "cpu"


def distribution_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _commit() -> str:
    """Short hash of HEAD, with "+changes" if the working tree differs; "unknown" without git."""
    try:
        head = _git("rev-parse", "--short", "HEAD")
        return head + ("+changes" if _git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(_ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _without_folders(argument: str) -> str:
    option, equals, value = argument.rpartition("=")
    return option + equals + (Path(value).name if os.sep in value else value)
