"""RobustBench itself, for what only it has."""

import importlib
from types import ModuleType


def load(module: str, needed_by: str) -> ModuleType:
    """`robustbench.<module>`; ImportError that says what to install where it cannot be imported."""
    try:
        return importlib.import_module(f"robustbench.{module}")
    except ImportError as error:
        raise ImportError(
            f"{needed_by} needs RobustBench, which cannot be imported ({error}): pip install "
            "git+https://github.com/RobustBench/robustbench"
        ) from error
