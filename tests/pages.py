"""The code of README and of docs/, run as a reader would, and what stands beside it."""

import contextlib
import io
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_PYTHON = re.compile(r"^```python\n(.*?)^```", re.M | re.S)
_SHOWN = re.compile(r"^```text\n(.*?)^```", re.M | re.S)


def blocks(text: str) -> list[str]:
    return _PYTHON.findall(text)


def run(text: str, names: dict[str, Any]) -> list[str]:
    """What the blocks of `text` print, one after another in the session `names`."""
    printed = []
    for block in blocks(text):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(block, "page", "exec"), names)
        printed.append(out.getvalue())
    return printed


def shown(text: str) -> list[str]:
    """What the page says that its blocks print."""
    return _SHOWN.findall(text)
