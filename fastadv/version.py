"""Versions, as reports, checkpoints and warnings name them."""

import importlib.metadata

__version__ = "0.1.0"


def installed_version(package: str) -> str:
    """The version of an installed package, without importing it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
