"""Which libraries of the AutoAttack comparison are there; the authors' is not on PyPI."""

import contextlib
import hashlib
import importlib
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from benchmarks.autoattack.entrants import (
    AUTHORS,
    OURS,
    TORCHATTACKS,
    Build,
    Fastadv,
    authors,
    torchattacks,
)
from benchmarks.harness.peers import Unavailable


def entrants(path: Path | None) -> dict[str, Build]:
    """Those that can take part, the authors first; says on stderr who cannot, and why.

    path: the folder that holds the package `autoattack`; None takes the environment's
    AUTOATTACK_PATH, or what is importable.
    """
    found: dict[str, Build] = {}
    with _left_out(AUTHORS):
        found[AUTHORS] = authors(authors_package(path))
    found[OURS] = Fastadv
    with _left_out(TORCHATTACKS):
        importlib.import_module("torchattacks")
        found[TORCHATTACKS] = torchattacks
    return found


@contextlib.contextmanager
def _left_out(name: str) -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (ImportError, Unavailable) as reason:
        print(f"without {name}: {reason}", file=sys.stderr)


def authors_package(path: Path | None) -> ModuleType:
    """The module `autoattack`; raises Unavailable where there is none."""
    given = str(path) if path is not None else os.environ.get("AUTOATTACK_PATH", "")
    if given and not (Path(given) / "autoattack").is_dir():
        raise Unavailable(f"{Path(given).name!r} holds no folder autoattack")
    if given:
        sys.path.insert(0, given)
    try:
        module = importlib.import_module("autoattack")
    except ImportError as error:
        raise Unavailable(
            f"{error}; the package is not on PyPI: give --authors or AUTOATTACK_PATH, the folder "
            "of a checkout of fra31/auto-attack"
        ) from error
    finally:
        if given:
            sys.path.remove(given)
    # a drop-in may stand under the authors' name
    if module.__name__ != "autoattack" or not hasattr(module, "AutoAttack"):
        raise Unavailable(f"the module {module.__name__} is not the authors' package")
    return module


def authors_version() -> dict[str, str]:
    """{"autoattack": a digest of its source}, which has no version; empty if it takes no part."""
    module = sys.modules.get("autoattack")
    if module is None or module.__name__ != "autoattack" or module.__file__ is None:
        return {}
    digest = hashlib.sha256()
    for file in sorted(Path(module.__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return {"autoattack": f"sha256:{digest.hexdigest()[:12]}"}
