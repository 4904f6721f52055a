"""What ran an evaluation: versions, device and backend."""

import importlib.metadata
import platform

import torch

from fastadv.ops import backend
from fastadv.version import __version__


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
        "backend": f"{chosen} ({reason})",
    }


def installed_version(package: str) -> str:
    """The version of an installed package, without importing it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
