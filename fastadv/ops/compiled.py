"""Whether loops for CPUs are compiled here: numba is there (the extra `cpu`), works, is not hidden.

Nothing of it is imported by `import fastadv`: the first op that has loops asks. FASTADV_COMPILED=0
hides it.
"""

import contextlib
import functools
import importlib
import importlib.util
import os
from collections.abc import Iterator

_SWITCH = "FASTADV_COMPILED"
_hidden = 0


@functools.cache
def why_not() -> str:
    """Why no loops run in this process, "" where they do: one has been run."""
    switch = os.environ.get(_SWITCH) or "1"
    if switch not in ("0", "1"):
        raise ValueError(f'{_SWITCH} must be "0" or "1"; got {switch!r}')
    if switch == "0":
        return f"{_SWITCH}=0 hides them"
    if importlib.util.find_spec("numba") is None:
        return 'numba is not installed: pip install "numba>=0.61"'
    try:  # a numba that does not know this numpy, a system that runs no code of its processes
        ran = importlib.import_module("fastadv.ops.loops_probe").runs()
    except Exception as error:
        return f"numba does not work here: {type(error).__name__}: {error}"
    return "" if ran else "numba does not work here: its code gives a wrong result"


def is_on() -> bool:
    return not _hidden and not why_not()


@contextlib.contextmanager
def hidden() -> Iterator[None]:
    """Within it ops run what they do without numba, in every thread: for tests and measurements."""
    global _hidden
    _hidden += 1
    try:
        yield
    finally:
        _hidden -= 1
