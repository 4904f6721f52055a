"""What ran an evaluation, and when: versions, device and backend."""

import datetime
import platform

import torch

from fastadv.evaluation.in_use import in_words
from fastadv.ops import backend, registry
from fastadv.version import __version__, installed_version


def now() -> str:
    """As 2026-12-01 04:10 UTC: dates in order are texts in order."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def describe_environment(device: torch.device) -> dict[str, str]:
    """What ran: versions, device and backend, in words."""
    chosen, reason = backend.explain(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "fastadv": __version__,
        "torch": torch.__version__,
        "triton": installed_version("triton"),
        "python": platform.python_version(),
        "device": f"{device} ({name})",
        "backend": f"{in_words(chosen, registry.fallen_back(device))} ({reason})",
    }
